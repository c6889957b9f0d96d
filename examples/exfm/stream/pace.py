"""Replay at real or accelerated speed: the stream's seconds against the wall's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from examples.exfm.stream.events import Events
from examples.exfm.stream.log import Position


def pace(
    chunks: Iterator[tuple[Events, Position]],
    speed: float | None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[tuple[Events, Position]]:
    """Hands a chunk over when its last event would have been logged, `speed` seconds of the stream a second of the
    wall; None: at once. A reader that is slow is never waited for twice: times count from the first chunk."""
    start = begun = None
    for events, position in chunks:
        if speed is not None:
            if start is None or begun is None:
                start, begun = int(events.logged[0]), clock()
            ahead = (int(events.logged[-1]) - start) / speed - (clock() - begun)
            if ahead > 0:
                sleep(ahead)
        yield events, position
