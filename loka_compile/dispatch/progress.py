"""One line on a terminal for whoever waits for a plan: what is being done, rewritten in place, gone in the end.

Nothing is written before `AFTER` seconds, nor where standard error is no terminal.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TextIO

AFTER = 5.0
"""Seconds that nobody is told about."""
AGAIN = 0.1
"""Seconds between two lines."""
CLEAR = "\r\x1b[K"


@dataclass
class _Line:
    stream: TextIO
    clock: Callable[[], float]
    start: float = field(init=False)
    written: float | None = None

    def __post_init__(self) -> None:
        self.start = self.clock()

    def say(self, text: str) -> None:
        now = self.clock()
        if now - self.start < AFTER or (self.written is not None and now - self.written < AGAIN):
            return
        self.stream.write(f"{CLEAR}loka: {text} ({now - self.start:.0f} s)")
        self.stream.flush()
        self.written = now

    def clear(self) -> None:
        if self.written is not None:
            self.stream.write(CLEAR)
            self.stream.flush()


_line: ContextVar[_Line | None] = ContextVar("loka_progress", default=None)


@contextlib.contextmanager
def progress(stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Shows the line while the block runs. Within another such block it does nothing."""
    stream = stream or sys.stderr
    if _line.get() is not None or stream is None or not stream.isatty():
        yield
        return
    line = _Line(stream, clock)
    token = _line.set(line)
    try:
        yield
    finally:
        _line.reset(token)
        line.clear()


def say(text: str) -> None:
    """Puts into the line what is being done now, in a few words."""
    line = _line.get()
    if line is not None:
        line.say(text)
