"""loka::frozen_gemm, frozen_mm, frozen_int_mm: products with a parameter that is quantized once, not at every call.

    out          = frozen_mm(a, weight, transposed)                         a 16-bit float: (M, N) in a's dtype
    acc, columns = frozen_int_mm(a, weight, transposed, more)               int8: acc (M, N) int32, columns (2, N)
    out          = frozen_gemm(a, a_scale, weight, transposed, dtype, scaling, out_dtype, provider, more)

a: (M, K), already quantized. weight: the parameter itself, (K, N), or (N, K) with `transposed` (a linear's). Where the
kernel wants them larger it is padded with zeros: along K to what a has, and by `more` columns, which N then counts.
All but the integer form take batches too: a (B, M, K), weight (B, K, N) or (B, N, K).
The first two leave scales and casts to their caller, which Inductor fuses with what follows. columns, float32: the
weight's scales, and the sums of its columns, which an affine left operand's smallest value is multiplied with to make
what it lacks. Inductor calls the integer form with memory that it has planned (`.out`), and uses again for the next
product: what an op allocates itself goes back to the system and comes page by page at every call. It cannot where a
size is symbolic, for which there is any_frozen_int_mm, nor, in its C++ wrapper, for an op with one output, as frozen_mm
is (seen with torch 2.13).

The quantized weight is kept beside the parameter and made anew when the parameter changed. What tells: the tensor
object, its storage, its version counter, and on a CPU 64 of its values and, at each 8th call, one of its blocks in turn
(fingerprint.py), because writes through `.data` do not count as a version; on a GPU comparing them would wait for it at
every call, so there such writes are not seen. A tensor without a version counter (made under inference_mode) is
quantized at every call. A fake one has only a shape to give.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loka_compile import compat
from loka_compile.kernels import quantize as quantization
from loka_compile.kernels.fingerprint import Blocks
from loka_compile.kernels.scaled_gemm import IMPLEMENTATIONS, int_mm, int_mm_into

SAMPLES = 64
LOOK_EVERY = 8
"""Calls between two looks at a block: of a weight of a million values all are looked at in 8,000 calls."""


@dataclass(frozen=True)
class _Entry:
    """One parameter's quantized forms. Holding the storage keeps its address from being given to another tensor.
    sampled: a view of the values that `sample` is a copy of."""

    parameter: weakref.ref[Tensor]
    storage: Any
    version: int
    sampled: Tensor
    sample: Tensor
    layout: tuple[Any, ...]
    forms: dict[Any, Any]
    blocks: Blocks

    def holds(self, weight: Tensor) -> bool:
        return (
            self.parameter() is weight
            and self.version == weight._version
            and self.layout == _layout(weight)
            and (weight.is_cuda or torch.equal(self.sample, self.sampled))
            and (weight.is_cuda or self.blocks.same(weight, LOOK_EVERY))
        )


_entries: dict[int, _Entry] = {}  # id of the parameter; an entry goes with its parameter
_lock = threading.Lock()


def frozen(weight: Tensor, form: Any, make: Callable[[Tensor], Any]) -> Any:
    """`make(weight)`, remembered under `form` until the weight changes."""
    if weight.is_inference() or compat.is_fake(weight):
        return make(weight)
    key = id(weight)
    with _lock:
        entry = _entries.get(key)
        if entry is None or not entry.holds(weight):
            forget = weakref.ref(weight, lambda _: _entries.pop(key, None))
            sampled = _sampled(weight)
            kept = sampled, sampled.clone(), _layout(weight)
            entry = _Entry(forget, weight.untyped_storage(), weight._version, *kept, {}, Blocks())
            if not weight.is_cuda:
                entry.blocks.learn(weight)
            _entries[key] = entry
        if form not in entry.forms:
            entry.forms[form] = make(weight)
        return entry.forms[form]


def _layout(weight: Tensor) -> tuple[Any, ...]:
    return weight.data_ptr(), weight.shape, weight.stride(), weight.dtype


def _sampled(weight: Tensor) -> Tensor:
    """Some of its values, as they lie: a view."""
    sizes = [(size - 1) * abs(stride) for size, stride in zip(weight.shape, weight.stride(), strict=True)]
    span = 0 if not weight.numel() else 1 + sum(sizes)
    step = span // SAMPLES | 1  # an odd step walks through the columns too
    return weight.detach().as_strided((-(-span // step),), (step,))


def quantized(
    weight: Tensor, transposed: bool, dtype: torch.dtype, scaling: str, k: int, more: int = 0
) -> tuple[Tensor, Tensor | None]:
    """The weight as a right operand (k, N + more), quantized along K, with its scale; a plain cast has none."""
    form = transposed, dtype, scaling, k, more
    return frozen(weight, form, lambda tensor: right_operand(tensor, *form))


def right_operand(
    tensor: Tensor, transposed: bool, dtype: torch.dtype, scaling: str, k: int, more: int = 0
) -> tuple[Tensor, Tensor | None]:
    own = _padded(tensor.detach(), transposed, k, more)
    right = own.mT if transposed else own
    if scaling == "none":
        return right.to(dtype), None
    if compat.is_fake(tensor):
        scale = right.new_empty(quantization.scale_shape(right, scaling, -2), dtype=torch.float32)
        return torch.empty_like(right, dtype=dtype), scale
    q, scale = quantization.reference(right, dtype, scaling, -2)
    return (q if dtype == torch.int8 else q.mT.contiguous().mT), scale  # in FP8 every provider reads it along K


def _padded(weight: Tensor, transposed: bool, k: int, more: int) -> Tensor:
    """With zeros up to k along K and `more` columns of them, as it lies."""
    along = k - weight.shape[-1 if transposed else -2]
    return quantization.with_zeros(weight, *((more, along) if transposed else (along, more)))


def _frozen_int_mm(a: Tensor, weight: Tensor, transposed: bool, more: int = 0) -> tuple[Tensor, Tensor]:
    q, columns = _integers(weight, transposed, a.shape[1], more)
    return int_mm(a, q).contiguous(), columns.clone()  # an op's outputs are its caller's to overwrite


def _empty_integers(a: Tensor, weight: Tensor, transposed: bool, more: int = 0) -> tuple[Tensor, Tensor]:
    n = (weight.shape[0] if transposed else weight.shape[1]) + more
    return a.new_empty((a.shape[0], n), dtype=torch.int32), a.new_empty((2, n), dtype=torch.float32)


frozen_int_mm = torch.library.custom_op("loka::frozen_int_mm", _frozen_int_mm, mutates_args=())
frozen_int_mm.register_fake(_empty_integers)
any_frozen_int_mm = torch.library.custom_op("loka::any_frozen_int_mm", _frozen_int_mm, mutates_args=())
any_frozen_int_mm.register_fake(_empty_integers)


INTO = "loka::frozen_int_mm.out"
torch.library.define(
    INTO,
    "(Tensor a, Tensor weight, bool transposed, SymInt more=0, *, Tensor(a!) acc, Tensor(b!) columns)"
    " -> (Tensor(a!), Tensor(b!))",
    tags=torch.Tag.out,  # what Inductor looks for among an op's overloads (seen with torch 2.13)
)


@torch.library.impl(INTO, ("cpu", "cuda"))
def _(
    a: Tensor, weight: Tensor, transposed: bool, more: int = 0, *, acc: Tensor, columns: Tensor
) -> tuple[Tensor, Tensor]:
    q, own = _integers(weight, transposed, a.shape[1], more)
    return int_mm_into(acc, a, q), columns.copy_(own)


def _integers(weight: Tensor, transposed: bool, k: int, more: int) -> tuple[Tensor, Tensor]:
    """The weight as int8, (K, N), and its columns' scales and sums, (2, N)."""

    def make(tensor: Tensor) -> tuple[Tensor, Tensor]:
        q, scale = right_operand(tensor, transposed, torch.int8, "row", k, more)
        assert scale is not None
        return q, torch.cat([scale, quantization.dequantize(q, scale).sum(0, keepdim=True)])

    return frozen(weight, (transposed, "integers", k, more), make)


@torch.library.custom_op("loka::frozen_mm", mutates_args=())
def frozen_mm(a: Tensor, weight: Tensor, transposed: bool) -> Tensor:
    return torch.matmul(a, quantized(weight, transposed, a.dtype, "none", a.shape[-1])[0])


@frozen_mm.register_fake
def _(a: Tensor, weight: Tensor, transposed: bool) -> Tensor:
    return a.new_empty((*a.shape[:-1], weight.shape[-2] if transposed else weight.shape[-1]))


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
    q, scale = quantized(weight, transposed, dtype, scaling, a.shape[-1], more)
    return IMPLEMENTATIONS[provider](a, a_scale, q, scale, out_dtype)


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
