"""When to measure again, so that measuring stays within its share of the time."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

AT_LEAST = 100
"""Calls between two measured ones, however cheap measuring is (LoKA Probe's interval)."""


@dataclass
class Pace:
    """Seconds spent in calls and, beyond them, in measuring; `budget` is the highest ratio of the two.

    cost: what the next measured call is expected to take beyond a plain one.
    """

    budget: float
    cost: float = 0.0
    calls: int = 0
    measured: int = 0
    call_seconds: float = 0.0
    extra_seconds: float = 0.0
    _since: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def due(self) -> bool:
        """True for one caller only, who then measures and reports to `add_measured`."""
        if self._since < AT_LEAST:  # at nearly every call, without the lock
            return False
        with self._lock:
            affordable = self.extra_seconds + self.cost <= self.budget * self.call_seconds
            if self.budget <= 0 or self._since < AT_LEAST or not affordable:
                return False
            self._since = 0
            return True

    def add_call(self, seconds: float) -> None:
        with self._lock:
            self.calls += 1
            self._since += 1
            self.call_seconds += seconds

    def add_measured(self, seconds: float) -> None:
        with self._lock:
            self.cost = seconds
            self.measured += 1
            self.extra_seconds += seconds

    def add_extra(self, seconds: float) -> None:
        """More of the last measured call, which will cost the next one too: its backward, which runs later."""
        with self._lock:
            self.cost += seconds
            self.extra_seconds += seconds if self.measured else 0.0

    @property
    def overhead(self) -> float:
        """Measuring's share of the time spent in calls; 0 before the first."""
        return self.extra_seconds / self.call_seconds if self.call_seconds else 0.0

    @property
    def next_in(self) -> int:
        """About how many calls from now the next one is measured."""
        mean = self.call_seconds / self.calls if self.calls else 0.0
        missing = self.extra_seconds + self.cost - self.budget * self.call_seconds
        affordable = missing / (self.budget * mean) if self.budget > 0 and mean else 0.0
        return max(0, AT_LEAST - self._since, round(affordable))
