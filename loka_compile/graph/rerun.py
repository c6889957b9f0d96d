"""Running a Dynamo graph once more, on copies of its inputs, so that nobody notices.

A copy has the sizes, strides and overlaps of its input, and is a leaf if the input is one. Inputs that share a storage
have copies that share one, and views of one tensor become views of one copy. So a write through one is seen through the
others, and code compiled for the inputs accepts the copies.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, UntypedStorage, fx, nn

from loka_compile.graph.reader import read

ALIGNED = 64
"""Bytes. A copy's address has the same remainder as the input's, so vector instructions cost the same."""


def is_training(inputs: Sequence[Any]) -> bool:
    """Whether a graph of these inputs will be differentiated; AOTAutograd decides in the same way."""
    return torch.is_grad_enabled() and any(getattr(value, "requires_grad", False) for value in inputs)


def written_inputs(graph: fx.Graph) -> frozenset[int]:
    """Places of the inputs that a Dynamo graph writes in place, or may write."""
    return read(graph).written_inputs()


def own_inputs(inputs: Sequence[Any], written: Collection[int]) -> list[Any]:
    """The inputs for one more run: parameters themselves, as they are large and hardly ever written; copies of other
    tensors.

    A parameter is copied too if it, or another input in its storage, is written.
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
    """A key that tensors of one storage share. Empty tensors and tensors that are not strided share nothing."""
    if not _is_plain(tensor):
        return "alone", id(tensor)
    address = tensor.untyped_storage().data_ptr()
    return (tensor.device, address) if address else ("alone", id(tensor))


def _is_plain(tensor: Tensor) -> bool:
    """Whether the tensor is strided memory and nothing else."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
    return plain and not (tensor.is_quantized or tensor.is_neg() or tensor.is_conj())


def _copies(tensors: Sequence[Tensor]) -> dict[int, Tensor]:
    """Copies, in a new storage, of tensors that share one storage; by id of the original.

    Views of one tensor become views of one copy. The new storage has the size and offsets of the old one, because
    AOTAutograd merges inputs of one storage into one input if one of them is written (merge_view_inputs, seen with
    torch 2.13). Bytes that no tensor reaches are not copied; on a CPU they are not even allocated.
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
    """(new memory with the bytes that the tensors reach, the byte of the old storage at which it begins)."""
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
    """(first byte of the tensor in its storage, the byte after its last)."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    first, size = tensor.storage_offset(), tensor.element_size()
    return first * size, (first + last + 1) * size


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same bytes in fewer ranges without overlaps."""
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
    """A tensor in `memory`, at the place and with the strides that `tensor` has in its own."""
    offset = tensor.storage_offset() - (start // tensor.element_size() if tensor.numel() else 0)
    return tensor.new_empty(0).set_(memory, offset, tensor.shape, tensor.stride())


def _view(base: Tensor, like: Tensor) -> Tensor:
    with torch.set_grad_enabled(not like.is_leaf):
        view = base.as_strided(like.shape, like.stride(), like.storage_offset())
    return view if view.requires_grad == like.requires_grad else view.requires_grad_(like.requires_grad)


class _Computed(torch.autograd.Function):
    """Makes a leaf a computed tensor: it may then be written in place while gradients are recorded."""

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
        return _Computed.apply(torch.empty(0, requires_grad=True, dtype=torch.float32, device="cpu"), [copy])
