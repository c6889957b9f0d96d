"""The product of two quantized matrices: the specification that every provider's kernel is held to."""

from __future__ import annotations

import torch
from torch import Tensor

from loka_compile.kernels.quantize.quantize import dequantize


def reference(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    """The specification: operands times their scales in float32, then one float32 product, cast to out_dtype."""
    left = a.float() if a_scale is None else dequantize(a, a_scale)
    right = b.float() if b_scale is None else dequantize(b, b_scale)
    return (left @ right).to(out_dtype)
