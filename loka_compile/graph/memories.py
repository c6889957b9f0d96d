"""Storages as numbers: two tensors have one number if one is a view of the other."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from loka_compile import compat


class Memories:
    """Numbers of the storages that have been seen, from 0 on."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._storages: list[Any] = []  # kept alive, so that no new storage reuses an address

    def of(self, value: Any) -> frozenset[int]:
        """The storages of all tensors in a value.
        Raises NotImplementedError for a tensor without one (a sparse one, say).
        """
        found = set()
        for each in tree_leaves(value):
            if isinstance(each, torch.Tensor):
                if compat.hides_its_memory(each):
                    raise NotImplementedError(f"a {type(each).__name__} hides its memory")
                storage = each.untyped_storage()
                number = self._numbers.setdefault(storage._cdata, len(self._numbers))
                if number == len(self._storages):
                    self._storages.append(storage)
                found.add(number)
        return frozenset(found)

    def copy(self) -> Memories:
        """The same numbers; what either sees from now on, the other does not know."""
        other = Memories()
        other._numbers, other._storages = dict(self._numbers), list(self._storages)
        return other
