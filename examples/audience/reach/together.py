"""Questions that come while others are being asked wait, and are asked together.

A call of a counter costs the same for one question as for ten, so under load there are fewer calls, and alone a
question waits for nobody (as databases commit in groups). Where questions meet, the next call comes when some more
are there, or twice as long after the last one as that took.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from examples.audience.reach.shard import Ask

MOST = 64
"""Asks of one call, if one question alone does not have more."""
SOME = 8
"""Asks that wait for no more others."""
PATIENCE = 0.05
"""Seconds after which a call that is under way (one of its counters has died, say) keeps no other back; and the most
between two calls."""


@dataclass(eq=False)
class _Waiting:
    """turn: set when it may lead. done: set when a call that took it has ended."""

    asks: Sequence[Ask]
    until: float
    taken: bool = False
    turn: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)
    found: dict[str, list[Any]] = field(default_factory=dict)
    error: Exception | None = None


class Together:
    """call: asks and seconds -> answers by shard, one to each ask."""

    def __init__(self, call: Callable[[Sequence[Ask], float], dict[str, list[Any]]]) -> None:
        self._call = call
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._under_way: dict[object, float] = {}
        self._rests_until = 0.0

    def ask(self, asks: Sequence[Ask], seconds: float) -> dict[str, list[Any]]:
        """The answers that are there in time. Raises what the call raises that they were in."""
        own = _Waiting(asks, time.monotonic() + seconds)
        with self._lock:
            self._waiting.append(own)
        while not own.taken:
            if group := self._group():
                self._lead(group)
            else:
                own.turn.wait(self._pause(own))
                own.turn.clear()
        own.done.wait(max(0.0, own.until - time.monotonic()))
        if own.error is not None:
            raise own.error
        return own.found

    def _busy(self) -> bool:
        """Whether those that wait go on waiting. The lock is held."""
        now = time.monotonic()
        rests = now < self._rests_until and sum(len(each.asks) for each in self._waiting) < SOME
        return rests or any(now - began < PATIENCE for began in self._under_way.values())

    def _pause(self, own: _Waiting) -> float:
        """Seconds until the question looks again whether it may lead. The first one of those that wait is woken, or
        looks when the rest is over; the others only in case that it does not."""
        with self._lock:
            first = bool(self._waiting) and self._waiting[0] is own
            rest = self._rests_until - time.monotonic()
        return rest if first and rest > 0 else PATIENCE

    def _group(self) -> list[_Waiting]:
        """Who is asked for now: whoever waits longest, and those after it as far as they fit. Nobody, if it is not
        time. The question that leads need not be one of them."""
        with self._lock:
            if not self._waiting or self._busy():
                return []
            group, size = self._waiting[:1], len(self._waiting[0].asks)
            for each in self._waiting[1:]:
                if size + len(each.asks) <= MOST:
                    group.append(each)
                    size += len(each.asks)
            for each in group:
                each.taken = True
                each.turn.set()
            self._waiting = [each for each in self._waiting if not each.taken]
            self._under_way[group[0]] = time.monotonic()
            return group

    def _lead(self, group: Sequence[_Waiting]) -> None:
        asks = [ask for each in group for ask in each.asks]
        began = self._under_way[group[0]]
        try:
            found = self._call(asks, max(0.0, max(each.until for each in group) - began))
            start = 0
            for each in group:
                own = slice(start, start := start + len(each.asks))
                each.found = {shard: answers[own] for shard, answers in found.items()}
        except Exception as error:
            for each in group:
                each.error = error
        finally:
            for each in group:
                each.done.set()
            with self._lock:
                del self._under_way[group[0]]
                if len(group) > 1 or self._waiting:
                    now = time.monotonic()
                    self._rests_until = now + min(2 * (now - began), PATIENCE)
                if self._waiting:
                    self._waiting[0].turn.set()  # it alone: to wake all of them costs more than the call
