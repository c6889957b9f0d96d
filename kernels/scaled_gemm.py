"""loka::scaled_gemm: the product of two quantized matrices.

    out = (a * a_scale) @ (b * b_scale)

a: (M, K) or (B, M, K); b: (K, N) or (B, K, N); int8 (a also uint8), float8 or a 16-bit float. Scales as
loka::quantize makes them, None for a 16-bit operand. out: `out_dtype`. Products are summed in float32 (int32 for int8).
`provider` says whose kernel computes it (kernels/providers); the reference, whatever the provider, is the plain product
of the dequantized operands in float32 (kernels/product.py): any recipe's exact numerics, anywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from loka_compile.kernels.providers import PROVIDERS


@torch.library.custom_op("loka::scaled_gemm", mutates_args=())
def scaled_gemm(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, out_dtype: torch.dtype, provider: str
) -> Tensor:
    return PROVIDERS[provider].product(a, a_scale, b, b_scale, out_dtype)


@scaled_gemm.register_fake
def _(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, out_dtype: torch.dtype, provider: str
) -> Tensor:
    return a.new_empty((*a.shape[:-1], b.shape[-1]), dtype=out_dtype)
