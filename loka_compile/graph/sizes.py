"""Sizes of fake tensors: numbers, and symbols for sizes that may change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from loka_compile import compat


def known(size: Any) -> Any:
    """A symbolic size as a number if it has only one value; any other size as it is."""
    return int(size) if isinstance(size, torch.SymInt) and size.node.expr.is_number else size


def same(a: Any, b: Any) -> bool:
    """Whether two sizes are equal for all values of their symbols; adds no guard."""
    return compat.guard_free(a == b)


def same_sizes(a: Iterable[Any], b: Iterable[Any]) -> bool:
    """Whether two shapes are equal in all sizes; adds no guard."""
    a, b = tuple(a), tuple(b)
    return len(a) == len(b) and all(map(same, a, b))


def numel(sizes: Iterable[Any]) -> int:
    """The number of elements for the inputs at hand; adds no guard."""
    total = 1
    for size in sizes:
        total *= compat.concrete(size)
    return total
