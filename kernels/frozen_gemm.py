"""loka::frozen_gemm: any provider's product with a parameter that is quantized once, not at every call (frozen.py).

    out = frozen_gemm(a, a_scale, weight, transposed, dtype, scaling, out_dtype, provider, more)

a: (M, K), already quantized, or (B, M, K). weight: the parameter itself, (K, N), or (N, K) with `transposed` (a
linear's), or a batch of them. Where the kernel wants them larger it is padded with zeros: along K to what a has, and by
`more` columns, which N then counts. Providers that have an operator of their own for this say so (Provider.frozen).
"""

from __future__ import annotations

import torch
from torch import Tensor

from loka_compile.kernels import frozen
from loka_compile.kernels.providers import PROVIDERS


@torch.library.custom_op("loka::frozen_gemm", mutates_args=())
def frozen_gemm(
    a: Tensor,
    a_scale: Tensor | None,
    weight: Tensor,
    transposed: bool,
    dtype: torch.dtype,
    scaling: str,
    out_dtype: torch.dtype,
    provider: str,
    more: int = 0,
) -> Tensor:
    q, scale = frozen.quantized(weight, transposed, dtype, scaling, a.shape[-1], more)
    return PROVIDERS[provider].product(a, a_scale, q, scale, out_dtype)


@frozen_gemm.register_fake
def _(
    a: Tensor,
    a_scale: Tensor | None,
    weight: Tensor,
    transposed: bool,
    dtype: torch.dtype,
    scaling: str,
    out_dtype: torch.dtype,
    provider: str,
    more: int = 0,
) -> Tensor:
    n = (weight.shape[-2] if transposed else weight.shape[-1]) + more
    return a.new_empty((*a.shape[:-1], n), dtype=out_dtype)
