"""An attribute of PyTorch's replaced for a while."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def instead(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    """`owner.name` is the replacement meanwhile; a static method goes back as one."""
    original = inspect.getattr_static(owner, name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, original)
