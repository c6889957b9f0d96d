"""The work in progress, shown to whoever waits for a plan.

On a terminal it is one line, rewritten in place and gone in the end. Elsewhere it goes to the logger `loka`: a line at
level INFO every few seconds, and once, where a plan takes long, a warning that says what takes the time. Nothing is
said of what is done within `AFTER` seconds.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from loka_compile.dispatch.kept_times import cache_dir

AFTER = 5.0
"""Seconds that nobody is told about."""
AGAIN = 0.1
"""Seconds between two states of the line on a terminal."""
LOG_AGAIN = 5.0
"""Seconds between two lines of the log."""
LONG = 20.0
"""Seconds after which a warning says what takes the time."""
CLEAR = "\r\x1b[K"

log = logging.getLogger("loka")


class _Shown(Protocol):
    """The place where progress is shown."""

    def say(self, text: str) -> None: ...

    def end(self) -> None: ...


@dataclass
class _Line:
    """On a terminal."""

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

    def end(self) -> None:
        if self.written is not None:
            self.stream.write(CLEAR)
            self.stream.flush()


@dataclass
class _Log:
    """Elsewhere. seconds: by the kind of work, which is the first word of what is said."""

    clock: Callable[[], float]
    start: float = field(init=False)
    last: float = field(init=False)
    kind: str = ""
    logged: float | None = None
    warned: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.start = self.last = self.clock()

    def say(self, text: str) -> None:
        now = self._count()
        self.kind = text.partition(" ")[0]
        if now - self.start >= LONG and not self.warned:
            self.warned = True
            log.warning(
                "loka: the plan has taken %.0f s so far: %s. Measured times are kept in %s, so another process will "
                "take less; one with a saved plan, loka.plan(compiled).save(path), measures nothing",
                now - self.start,
                self._spent(),
                cache_dir(),
            )
        if now - self.start >= AFTER and (self.logged is None or now - self.logged >= LOG_AGAIN):
            self.logged = now
            log.info("loka: %s (%.0f s)", text, now - self.start)

    def end(self) -> None:
        now = self._count()
        if now - self.start >= AFTER:
            log.info("loka: planned and compiled in %.0f s: %s", now - self.start, self._spent())

    def _count(self) -> float:
        now = self.clock()
        self.seconds[self.kind] = self.seconds.get(self.kind, 0.0) + now - self.last
        self.last = now
        return now

    def _spent(self) -> str:
        longest = sorted(self.seconds.items(), key=lambda each: -each[1])
        return ", ".join(f"{seconds:.0f} s {kind or 'other work'}" for kind, seconds in longest if seconds >= 1)


_shown: ContextVar[_Shown | None] = ContextVar("loka_progress", default=None)


@contextlib.contextmanager
def progress(stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Shows what is done while the block runs. Within another such block it does nothing."""
    if _shown.get() is not None:
        yield
        return
    stream = stream or sys.stderr
    shown: _Shown = _Line(stream, clock) if stream is not None and stream.isatty() else _Log(clock)
    token = _shown.set(shown)
    try:
        yield
    finally:
        _shown.reset(token)
        shown.end()


def say(text: str) -> None:
    """Says what is done now, in a few words. The first word is the kind of work: `timing`, `compiling`, `racing`."""
    shown = _shown.get()
    if shown is not None:
        shown.say(text)
