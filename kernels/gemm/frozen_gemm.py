"""loka::frozen_gemm: any provider's product with a parameter that is quantized once instead of at every call
(frozen.py).

    out = frozen_gemm(a, a_scale, weight, transposed, dtype, scaling, out_dtype, provider, more)

a: (M, K) or (B, M, K), already quantized; a_scale: its float32 scale or None.
weight: the parameter itself, (K, N), or (N, K) with `transposed` (a linear's), or a batch of them.
out: (..., M, N + more) in `out_dtype`. If the kernel needs a larger weight it is padded with zeros, along K to a's size
    and by `more` columns. Providers with an operator of their own for this say so (Provider.frozen).
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


frozen_gemm = declare(FrozenGemm, empty_output, product, gradient="never")
