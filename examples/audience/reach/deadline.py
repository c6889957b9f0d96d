"""Until when the work at hand is wanted: who asks sets it, loops look at it, so that nothing runs on for nobody."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_until: ContextVar[float] = ContextVar("until", default=math.inf)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """What is called in here, and threads started with this context, have so long."""
    token = _until.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _until.reset(token)


def check() -> None:
    """Raises TimeoutError when the time is up."""
    if time.monotonic() > _until.get():
        raise TimeoutError("the time for this question is up")
