"""A child of `fork` (as PyTorch's loaders start their workers) has none of its parent's threads, and all locks as they
were held. What has threads or locks is made anew there."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Renewed(Protocol):
    def renew(self) -> None:
        """Sets threads and locks as in a new object; in a child, right after the fork."""
        ...


_known: weakref.WeakSet[Renewed] = weakref.WeakSet()


def renew_in_children(owner: Renewed) -> None:
    """Calls `owner.renew` in every child that this process forks, for as long as `owner` lives."""
    _known.add(owner)


def _renew_all() -> None:
    for owner in list(_known):
        owner.renew()


if hasattr(os, "register_at_fork"):  # where there is a fork
    os.register_at_fork(after_in_child=_renew_all)
