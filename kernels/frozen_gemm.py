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
object, its storage, its version counter, and on a CPU 64 of its values, because writes through `.data` do not count as
a version; on a GPU comparing them would wait for it at every call, so there such writes are not seen. A tensor without
a version counter (made under inference_mode) is quantized at every call. A fake one has only a shape to give.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple

import torch
from torch import Tensor

from loka_compile import compat
from loka_compile.kernels import quantize as quantization
from loka_compile.kernels.op import Op, T, declare
from loka_compile.kernels.scaled_gemm import IMPLEMENTATIONS, int_mm, int_mm_into

SAMPLES = 64


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

    def holds(self, weight: Tensor) -> bool:
        return (
            self.parameter() is weight
            and self.version == weight._version
            and self.layout == _layout(weight)
            and (weight.is_cuda or torch.equal(self.sample, self.sampled))
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
            entry = _Entry(forget, weight.untyped_storage(), weight._version, *kept, {})
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


class Integers(NamedTuple, Generic[T]):
    acc: T
    columns: T


@dataclass(frozen=True)
class FrozenIntMm(Op[T, Integers[T]]):
    """See the module's docstring."""

    name: ClassVar[str] = "frozen_int_mm"
    values: ClassVar[Any] = Integers
    a: T
    weight: T
    transposed: bool
    more: int = 0


class AnyFrozenIntMm(FrozenIntMm[T]):
    """Of sizes for which Inductor plans no memory."""

    name: ClassVar[str] = "any_frozen_int_mm"


def _int_mm(call: FrozenIntMm[Tensor]) -> Integers[Tensor]:
    q, columns = _integers(call.weight, call.transposed, call.a.shape[1], call.more)
    return Integers(int_mm(call.a, q).contiguous(), columns.clone())  # an op's outputs are its caller's to overwrite


def _empty_integers(call: FrozenIntMm[Tensor]) -> Integers[Tensor]:
    a, n = call.a, _columns(call.weight, call.transposed) + call.more
    return Integers(a.new_empty((a.shape[0], n), dtype=torch.int32), a.new_empty((2, n), dtype=torch.float32))


def _columns(weight: Tensor, transposed: bool) -> int:
    return weight.shape[-2 if transposed else -1]


frozen_int_mm = declare(FrozenIntMm, _empty_integers, _int_mm)
any_frozen_int_mm = declare(AnyFrozenIntMm, _empty_integers, _int_mm)


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


@dataclass(frozen=True)
class FrozenMm(Op[T, T]):
    """See the module's docstring."""

    name: ClassVar[str] = "frozen_mm"
    a: T
    weight: T
    transposed: bool


def _mm(call: FrozenMm[Tensor]) -> Tensor:
    a = call.a
    return torch.matmul(a, quantized(call.weight, call.transposed, a.dtype, "none", a.shape[-1])[0])


def _empty_mm(call: FrozenMm[Tensor]) -> Tensor:
    return call.a.new_empty((*call.a.shape[:-1], _columns(call.weight, call.transposed)))


frozen_mm = declare(FrozenMm, _empty_mm, _mm)


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


def _gemm(call: FrozenGemm[Tensor]) -> Tensor:
    q, scale = quantized(call.weight, call.transposed, call.dtype, call.scaling, call.a.shape[-1], call.more)
    return IMPLEMENTATIONS[call.provider](call.a, call.a_scale, q, scale, call.out_dtype)


def _empty_gemm(call: FrozenGemm[Tensor]) -> Tensor:
    n = _columns(call.weight, call.transposed) + call.more
    return call.a.new_empty((*call.a.shape[:-1], n), dtype=call.out_dtype)


frozen_gemm = declare(FrozenGemm, _empty_gemm, _gemm)
