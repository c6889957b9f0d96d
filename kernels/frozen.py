"""Forms of a parameter that are made once instead of at every call: its quantizations.

A form is kept beside the parameter and made again when the parameter changed. A change shows in the tensor object, its
memory or its version counter. Writes through `.data` do not count as a version, so on a CPU 64 of its values are
compared at every call, and at each 8th call one of its blocks in turn (fingerprint.py). On a GPU a comparison would
wait for the GPU at every call, so such writes are not seen there.

A tensor without a version counter (made under inference_mode) is quantized at every call. A fake tensor gives shapes
only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loka_compile import compat
from loka_compile.kernels.fingerprint import Fingerprint
from loka_compile.kernels.quantize import quantize as quantization

LOOK_EVERY = 8
"""Calls between two looks at a block. In a weight of a million values all blocks are seen within 8,000 calls."""


@dataclass(frozen=True)
class _Entry:
    """One parameter's forms.

    memory: while it is there, no other tensor gets its address. values: None on a GPU, which nobody waits for.
    """

    memory: compat.Memory
    version: int
    layout: tuple[Any, ...]
    values: Fingerprint | None
    forms: dict[Any, Any]

    def holds(self, weight: Tensor) -> bool:
        """Whether the forms are those of this weight as it is now."""
        return (
            self.memory() is not None
            and self.version == weight._version
            and self.layout == _layout(weight)  # from here on the values lie where they lay
            and (self.values is None or self.values.same(LOOK_EVERY))
        )


_entries: dict[int, _Entry] = {}  # by id of the parameter; an entry goes when its parameter does
_lock = threading.Lock()


def frozen(weight: Tensor, form: Any, make: Callable[[Tensor], Any]) -> Any:
    """`make(weight)`, kept under `form` until the weight changes."""
    if weight.is_inference() or compat.is_fake(weight):
        return make(weight)
    key = id(weight)
    with _lock:
        entry = _entries.get(key)
        if entry is None or not entry.holds(weight):
            memory = compat.memory_of(weight, lambda _: _forget(key))
            values = None if weight.is_cuda else Fingerprint(weight)
            entry = _Entry(memory, weight._version, _layout(weight), values, {})
            _entries[key] = entry
        if form not in entry.forms:
            made = make(weight)
            if any(compat.is_memory_of(entry.memory, each) for each in _tensors(made)):
                return made  # the weight itself, which a form that is kept would keep
            entry.forms[form] = made
        return entry.forms[form]


def _forget(key: int) -> None:
    _entries.pop(key, None)


def _tensors(made: Any) -> list[Tensor]:
    return [each for each in (made if isinstance(made, tuple) else (made,)) if isinstance(each, Tensor)]


def _layout(weight: Tensor) -> tuple[Any, ...]:
    return weight.data_ptr(), weight.shape, weight.stride(), weight.dtype


def quantized(
    weight: Tensor, transposed: bool, dtype: torch.dtype, scaling: str, k: int, more: int = 0
) -> tuple[Tensor, Tensor | None]:
    """The weight as a right operand (k, N + more), quantized along K, with its float32 scale; None for a plain cast."""
    form = transposed, dtype, scaling, k, more
    return frozen(weight, form, lambda tensor: right_operand(tensor, *form))


def right_operand(
    tensor: Tensor, transposed: bool, dtype: torch.dtype, scaling: str, k: int, more: int = 0
) -> tuple[Tensor, Tensor | None]:
    """The right operand (k, N + more) of a weight, as `quantized` keeps it."""
    own = _padded(tensor.detach(), transposed, k, more)
    right = own.mT if transposed else own
    if scaling == "none":
        return right.to(dtype), None
    if compat.is_fake(tensor):
        scale = right.new_empty(quantization.scale_shape(right, scaling, -2), dtype=torch.float32)
        return torch.empty_like(right, dtype=dtype), scale
    q, scale = quantization.reference(right, dtype, scaling, -2)
    return (q if dtype == torch.int8 else q.mT.contiguous().mT), scale  # every FP8 provider reads it along K


def _padded(weight: Tensor, transposed: bool, k: int, more: int) -> Tensor:
    """The weight with zeros up to k along K, and `more` columns of zeros."""
    along = k - weight.shape[-1 if transposed else -2]
    return quantization.with_zeros(weight, *((more, along) if transposed else (along, more)))
