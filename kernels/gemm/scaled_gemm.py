"""loka::scaled_gemm: the product of two quantized matrices.

    out = (a * a_scale) @ (b * b_scale)

a: (M, K) or (B, M, K); b: (K, N) or (B, K, N); int8 (a also uint8), float8 or a 16-bit float. Scales are those of
    loka::quantize; None for a 16-bit operand.
out: (..., M, N) in `out_dtype`. Sums are in float32 (int8: int32).

provider: whose kernel computes it (kernels/providers). The reference is the same for all providers: the float32 product
of the dequantized operands (kernels/gemm/product.py), which is any recipe's exact numerics, anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from loka_compile.kernels.op import Op, T, declare
from loka_compile.kernels.providers import PROVIDERS


@dataclass(frozen=True)
class ScaledGemm(Op[T, T]):
    """See the module's docstring."""

    name: ClassVar[str] = "scaled_gemm"
    a: T
    a_scale: T | None
    b: T
    b_scale: T | None
    out_dtype: torch.dtype
    provider: str


def product(call: ScaledGemm[Tensor]) -> Tensor:
    return PROVIDERS[call.provider].product(*call.args[:-1])


def empty_output(call: ScaledGemm[Tensor]) -> Tensor:
    """The output without values. It is not taken from the reference, which would guard on sizes to see what kind a
    scale is."""
    return call.a.new_empty((*call.a.shape[:-1], call.b.shape[-1]), dtype=call.out_dtype)


scaled_gemm = declare(ScaledGemm, empty_output, product)
