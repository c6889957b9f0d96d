"""Questions that come while others are being asked wait, and are asked together.

A call of a counter costs the same for one question as for ten, so under load there are fewer calls, and alone a
question waits for nobody (as databases commit in groups).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from examples.audience.reach.shard import Ask

MOST = 64
"""Asks of one call, beyond those of the question that leads it."""
PATIENCE = 0.05
"""Seconds after which a call that is under way (one of its counters has died, say) keeps no other back."""


@dataclass(eq=False)
class _Waiting:
    asks: Sequence[Ask]
    until: float
    taken: bool = False
    done: threading.Event = field(default_factory=threading.Event)
    found: dict[str, list[Any]] = field(default_factory=dict)


class Together:
    """call: asks and seconds -> answers by shard, one to each ask."""

    def __init__(self, call: Callable[[Sequence[Ask], float], dict[str, list[Any]]]) -> None:
        self._call = call
        self._changed = threading.Condition()
        self._waiting: list[_Waiting] = []
        self._under_way: dict[object, float] = {}

    def ask(self, asks: Sequence[Ask], seconds: float) -> dict[str, list[Any]]:
        """The answers that are there in time; nothing if the call fails that others lead."""
        own = _Waiting(asks, time.monotonic() + seconds)
        with self._changed:
            self._waiting.append(own)
            while not own.taken and self._busy():
                self._changed.wait(PATIENCE)
            group = [] if own.taken else self._group(own)
        if group:
            self._lead(group)
        else:
            own.done.wait(max(0.0, own.until - time.monotonic()))
        return own.found

    def _busy(self) -> bool:
        now = time.monotonic()
        return any(now - began < PATIENCE for began in self._under_way.values())

    def _group(self, own: _Waiting) -> list[_Waiting]:
        """That question and those that wait, as far as they fit."""
        group, size = [own], 0
        for each in self._waiting:
            if each is not own and size + len(each.asks) <= MOST:
                group.append(each)
                size += len(each.asks)
        for each in group:
            each.taken = True
        self._waiting = [each for each in self._waiting if not each.taken]
        self._under_way[own] = time.monotonic()
        return group

    def _lead(self, group: Sequence[_Waiting]) -> None:
        asks = [ask for each in group for ask in each.asks]
        try:
            found = self._call(asks, max(0.0, max(each.until for each in group) - time.monotonic()))
            start = 0
            for each in group:
                own = slice(start, start := start + len(each.asks))
                each.found = {shard: answers[own] for shard, answers in found.items()}
        finally:
            for each in group:
                each.done.set()
            with self._changed:
                del self._under_way[group[0]]
                self._changed.notify_all()
