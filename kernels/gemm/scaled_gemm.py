"""loka::scaled_gemm: the product of two quantized matrices.

    out = (a * a_scale) @ (b * b_scale)

a: (M, K) or (B, M, K); b: (K, N) or (B, K, N); int8 (a also uint8), float8 or a 16-bit float. Scales as
loka::quantize makes them, None for a 16-bit operand. out: `out_dtype`. Products are summed in float32 (int32 for int8).
`provider` says whose kernel computes it (kernels/providers); the reference, whatever the provider, is the plain product
of the dequantized operands in float32 (kernels/gemm/product.py): any recipe's exact numerics, anywhere.
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
    """The output, without values, of any provider. The reference would guard on sizes to know what a scale is of."""
    return call.a.new_empty((*call.a.shape[:-1], call.b.shape[-1]), dtype=call.out_dtype)


scaled_gemm = declare(ScaledGemm, empty_output, product)
