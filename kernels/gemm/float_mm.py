"""loka::float_mm: a float32 product on a CPU by oneDNN.

    out = float_mm(a, b)

a: (M, K), b: (K, N), float32, as they lie or transposed. PyTorch's own float32 products are MKL's where it was built
with it, which run without AVX-512 on AMD's processors: of a Zen 5's core 100 GFLOP/s, where oneDNN's kernels reach 220
to 260 (seen with torch 2.13, MKL 2024.2, oneDNN 3.12). Sums are in float32 either way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from loka_compile.kernels.op import Op, T, declare


@dataclass(frozen=True)
class FloatMm(Op[T, T]):
    """See the module's docstring."""

    name: ClassVar[str] = "float_mm"
    a: T
    b: T


def runs_here() -> bool:
    """Whether this PyTorch has oneDNN, and a choice."""
    return torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()


def product(call: FloatMm[Tensor]) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(_dense(call.a), _dense(call.b).mT, None, "none", [], "")
    return out


def _dense(x: Tensor) -> Tensor:
    return x if x.is_contiguous() or x.mT.is_contiguous() else x.contiguous()


def empty(call: FloatMm[Tensor]) -> Tensor:
    return call.a.new_empty((call.a.shape[0], call.b.shape[1]))


float_mm = declare(FloatMm, empty, product)
