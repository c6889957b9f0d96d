"""Weak references to tensors by their memory.

A tensor with weak references cannot be swapped (torch.utils.swap_tensors), and so a model whose parameters somebody
refers to weakly can be neither converted nor loaded where PyTorch swaps for that
(torch.__future__.set_swap_module_params_on_conversion). The object that stands for a storage lives as long as the
storage and is one and the same (seen with torch 2.13), so references to it tell as much, and stand in nobody's way.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

Memory = weakref.ref[Any]


def memory_of(tensor: Tensor, died: Callable[[Memory], None] | None = None) -> Memory:
    """A weak reference to a tensor's memory, or to the tensor where it has none of its own (sparse, a subclass).

    `died` is called when nobody has the memory any more: the tensor is gone, or `.data` is other memory."""
    return weakref.ref(_holder(tensor), died)


def is_memory_of(memory: Memory, tensor: Tensor) -> bool:
    return memory() is _holder(tensor)


def _holder(tensor: Tensor) -> Any:
    if type(tensor) not in (Tensor, nn.Parameter):  # a subclass around other tensors says nothing of their memory
        return tensor
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return tensor
