"""Running a Dynamo graph once more, on inputs of its own, so that nobody notices.

The copies are laid out as the inputs were: sizes, strides, values that overlap, whether a tensor is computed or a leaf.
Inputs in one storage have copies in one storage, views of one tensor are views of one, so that a write through one of
them is seen by the others, and code that was compiled for the inputs takes the copies for them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, UntypedStorage, fx, nn

from loka_compile.graph.reader import read

ALIGNED = 64
"""Bytes: copies lie at the same place within so many as the inputs do, and vector instructions cost the same."""


def is_training(inputs: Sequence[Any]) -> bool:
    """Whether a graph of these inputs will be differentiated, as AOTAutograd decides it."""
    return torch.is_grad_enabled() and any(getattr(value, "requires_grad", False) for value in inputs)


def written_inputs(graph: fx.Graph) -> frozenset[int]:
    """Places of the inputs that a Dynamo graph writes in place, or of which that is not known."""
    return read(graph).written_inputs()


def own_inputs(inputs: Sequence[Any], written: Collection[int]) -> list[Any]:
    """The inputs for one more run: parameters, large and hardly ever written, as they are, other tensors copied.

    A parameter is copied too where it or another input in its storage is written.
    """
    own, storages = list(inputs), defaultdict(list)
    for place, value in enumerate(inputs):
        if isinstance(value, Tensor):
            storages[_storage_of(value)].append(place)
    for places in storages.values():
        changes = any(place in written for place in places)
        tensors = {id(inputs[i]): inputs[i] for i in places if changes or not isinstance(inputs[i], nn.Parameter)}
        copies = _copies(list(tensors.values())) if tensors else {}
        for place in places:
            own[place] = copies.get(id(inputs[place]), inputs[place])
    return own


def _storage_of(tensor: Tensor) -> tuple[Any, ...]:
    """What tensors in one storage have in common. Empty ones share nothing, others than strided ones have none."""
    if not _is_plain(tensor):
        return "alone", id(tensor)
    address = tensor.untyped_storage().data_ptr()
    return (tensor.device, address) if address else ("alone", id(tensor))


def _is_plain(tensor: Tensor) -> bool:
    """Numbers in a storage and nothing else."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
    return plain and not (tensor.is_quantized or tensor.is_neg() or tensor.is_conj())


def _copies(tensors: Sequence[Tensor]) -> dict[int, Tensor]:
    """Copies, in a new storage, of tensors that share one; by the id of the original.

    Views of one tensor become views of one; the storage of several has the size and offsets that it had, as AOTAutograd
    makes one input of all of it, or of the tensor that they are views of, where one is written (merge_view_inputs, seen
    with torch 2.13). Memory between them is not copied: on a CPU it is not even taken.
    """
    if len(tensors) == 1 and not _is_plain(tensors[0]):
        return {id(tensors[0]): _with_gradient(tensors[0].detach().clone(), tensors[0])}
    made: dict[int, Tensor] = {}
    with torch.inference_mode(False), torch.no_grad():
        memory, start = _memory_of(tensors)

        def make(tensor: Tensor) -> Tensor:
            if id(tensor) not in made:
                base = tensor._base if len(tensors) > 1 else None
                if base is not None and base.dtype == tensor.dtype and _storage_of(base) == _storage_of(tensor):
                    made[id(tensor)] = _view(make(base), tensor)
                else:
                    made[id(tensor)] = _with_gradient(_placed(tensor, memory, start), tensor)
            return made[id(tensor)]

        return {id(tensor): make(tensor) for tensor in tensors}


def _memory_of(tensors: Sequence[Tensor]) -> tuple[UntypedStorage, int]:
    """Memory with what the tensors reach of their storage, and the byte of the storage that it begins with."""
    storage = max((each.untyped_storage() for each in tensors), key=UntypedStorage.nbytes)
    reached = _joined([_reached(each) for each in tensors if each.numel()])
    start, end = 0, storage.nbytes()
    if len(tensors) == 1:
        start, end = (reached[0][0] // ALIGNED * ALIGNED, reached[0][1]) if reached else (0, 0)
    memory = torch.empty(end - start, dtype=torch.uint8, device=tensors[0].device).untyped_storage()
    for first, last in reached:
        _bytes(memory, first - start, last - start).copy_(_bytes(storage, first, last))
    return memory, start


def _reached(tensor: Tensor) -> tuple[int, int]:
    """From its first byte in the storage up to the one behind its last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    first, size = tensor.storage_offset(), tensor.element_size()
    return first * size, (first + last + 1) * size


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same in fewer ranges, none of which overlap."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(last, joined[-1][1])
        else:
            joined.append((first, last))
    return joined


def _bytes(storage: UntypedStorage, first: int, last: int) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage, first, (last - first,))


def _placed(tensor: Tensor, memory: UntypedStorage, start: int) -> Tensor:
    """A tensor in that memory where, and as, `tensor` lies in its own."""
    offset = tensor.storage_offset() - (start // tensor.element_size() if tensor.numel() else 0)
    return tensor.new_empty(0).set_(memory, offset, tensor.shape, tensor.stride())


def _view(base: Tensor, like: Tensor) -> Tensor:
    with torch.set_grad_enabled(not like.is_leaf):
        view = base.as_strided(like.shape, like.stride(), like.storage_offset())
    return view if view.requires_grad == like.requires_grad else view.requires_grad_(like.requires_grad)


class _Computed(torch.autograd.Function):
    """Makes a tensor one that was computed: unlike a leaf it may be written in place while gradients are recorded."""

    @staticmethod
    def forward(ctx: Any, root: Tensor, tensor: list[Tensor]) -> Tensor:
        return tensor[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        return None, None


def _with_gradient(copy: Tensor, like: Tensor) -> Tensor:
    if not like.requires_grad:
        return copy
    if like.is_leaf:
        return copy.requires_grad_()
    with torch.enable_grad():
        return _Computed.apply(torch.empty(0, requires_grad=True), [copy])
