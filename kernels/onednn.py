"""loka::frozen_onednn: unsigned 8-bit activations times a parameter that oneDNN has packed once.

    out = frozen_onednn(a, weight, transposed)

a: (M, K) uint8. weight: the parameter, (K, N), or (N, K) with `transposed` (a linear's). out: (M, N) float32 with the
weight's scales applied; the rows' scales are left to the caller, whose multiplication Inductor fuses with what
follows. The packed weight is kept beside the parameter as in frozen_gemm.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from loka_compile.kernels import quantize as quantization
from loka_compile.kernels.frozen_gemm import frozen
from loka_compile.kernels.op import Op, T, declare


def pack(weight: Tensor, transposed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The weight for qlinear_pointwise: packed, its scales (N,) and zero points (N,)."""
    right = weight.detach().mT if transposed else weight.detach()
    q, scale = quantization.reference(right, torch.int8, "row", -2)
    packed = torch.ops.onednn.qlinear_prepack(q.mT.contiguous(), None)
    return packed, scale.reshape(-1), torch.zeros(scale.numel(), dtype=torch.int32)


def product(a: Tensor, packed: Any) -> Tensor:
    """(M, N) float32, the rows' scales not applied."""
    weight, scale, zero = packed
    if not a.numel():
        return a.new_zeros((a.shape[0], len(scale)), dtype=torch.float32)
    rows, post_op = a.contiguous(), ("none", [], "")
    return torch.ops.onednn.qlinear_pointwise(rows, 1.0, 0, weight, scale, zero, None, 1.0, 0, torch.float32, *post_op)


@dataclass(frozen=True)
class FrozenOnednn(Op[T, T]):
    """See the module's docstring."""

    name: ClassVar[str] = "frozen_onednn"
    a: T
    weight: T
    transposed: bool


def run(call: FrozenOnednn[Tensor]) -> Tensor:
    form = "onednn", call.transposed
    return product(call.a, frozen(call.weight, form, lambda tensor: pack(tensor, call.transposed)))


def empty(call: FrozenOnednn[Tensor]) -> Tensor:
    n = call.weight.shape[0 if call.transposed else 1]
    return call.a.new_empty((call.a.shape[0], n), dtype=torch.float32)


frozen_onednn = declare(FrozenOnednn, empty, run)
