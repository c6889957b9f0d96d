"""What is made of a parameter once, not at every call: its quantized forms.

A form is kept beside the parameter and made anew when the parameter changed. What tells: the tensor object, its
storage, its version counter, and on a CPU 64 of its values and, at each 8th call, one of its blocks in turn
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
from loka_compile.kernels.fingerprint import BITS, Blocks
from loka_compile.kernels.quantize import quantize as quantization

SAMPLES = 64
LOOK_EVERY = 8
"""Calls between two looks at a block: of a weight of a million values all are looked at in 8,000 calls."""


@dataclass(frozen=True)
class _Entry:
    """One parameter's quantized forms. Holding the storage keeps its address from being given to another tensor.
    sampled: gives the bits of some of its values, `sample` what they were; none are looked at on a GPU."""

    parameter: weakref.ref[Tensor]
    storage: Any
    version: int
    sampled: Callable[[], bytes]
    sample: bytes
    layout: tuple[Any, ...]
    forms: dict[Any, Any]
    blocks: Blocks

    def holds(self, weight: Tensor) -> bool:
        return (
            self.parameter() is weight
            and self.version == weight._version
            and self.layout == _layout(weight)
            and self.sampled() == self.sample
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
            kept = sampled, sampled(), _layout(weight)
            entry = _Entry(forget, weight.untyped_storage(), weight._version, *kept, {}, Blocks())
            if not weight.is_cuda:
                entry.blocks.learn(weight)
            _entries[key] = entry
        if form not in entry.forms:
            entry.forms[form] = make(weight)
        return entry.forms[form]


def _layout(weight: Tensor) -> tuple[Any, ...]:
    return weight.data_ptr(), weight.shape, weight.stride(), weight.dtype


def _sampled(weight: Tensor) -> Callable[[], bytes]:
    """Reads the bits of some of its values, as they lie; by numpy, which takes a tenth of torch's time for it."""
    if weight.is_cuda:
        return bytes  # of nothing
    sizes = [(size - 1) * abs(stride) for size, stride in zip(weight.shape, weight.stride(), strict=True)]
    span = 0 if not weight.numel() else 1 + sum(sizes)
    step = span // SAMPLES | 1  # an odd step walks through the columns too
    values = weight.detach().as_strided((-(-span // step),), (step,))
    bits: Callable[[], bytes] = values.view(BITS[weight.element_size()]).numpy().tobytes
    return bits


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
