"""loka::frozen_gemm: any provider's product with a parameter that is quantized once, not at every call (frozen.py).

    out = frozen_gemm(a, a_scale, weight, transposed, dtype, scaling, out_dtype, provider, more)

a: (M, K), already quantized, or (B, M, K). weight: the parameter itself, (K, N), or (N, K) with `transposed` (a
linear's), or a batch of them. Where the kernel wants them larger it is padded with zeros: along K to what a has, and by
`more` columns, which N then counts. Providers that have an operator of their own for this say so (Provider.frozen).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from loka_compile.kernels import frozen
from loka_compile.kernels.op import Op, T, declare
from loka_compile.kernels.providers import PROVIDERS


@dataclass(frozen=True)
class FrozenGemm(Op[T, T]):
    """See the module's docstring."""

    name: ClassVar[str] = "frozen_gemm"
    a: T
    a_scale: T | None
    weight: T
    transposed: bool
    dtype: torch.dtype
    scaling: str
    out_dtype: torch.dtype
    provider: str
    more: int = 0


def product(call: FrozenGemm[Tensor]) -> Tensor:
    q, scale = frozen.quantized(call.weight, call.transposed, call.dtype, call.scaling, call.a.shape[-1], call.more)
    return PROVIDERS[call.provider].product(call.a, call.a_scale, q, scale, call.out_dtype)


def empty_output(call: FrozenGemm[Tensor]) -> Tensor:
    n = call.weight.shape[-2 if call.transposed else -1] + call.more
    return call.a.new_empty((*call.a.shape[:-1], n), dtype=call.out_dtype)


frozen_gemm = declare(FrozenGemm, empty_output, product)
