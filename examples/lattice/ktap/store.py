"""The key-value store between teacher and student: one interface, in this process or on Redis (redis_store.py)."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

from examples.lattice.ktap.forks import renew_in_children

SHORTEST, LONGEST = 1e-3, 10 * 365 * 86400.0
"""Seconds a value may live: Redis counts milliseconds, and takes no time that has no end."""


class StoreError(Exception):
    """The store did not do what it was asked to: it is down, full, or takes too long."""


class Store(Protocol):
    """Values by key, bytes both, each for a time to live to the millisecond; both calls may raise StoreError."""

    def put(self, keys: Sequence[bytes], values: Sequence[bytes], ttl: float) -> int:
        """Writes all, and says how many it took; each is gone `ttl` seconds later."""
        ...

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """One value a key; None where there is none or its time is over."""
        ...


class InProcess:
    """A dictionary. At most `capacity` values: the oldest written go first. `clock` gives seconds, for tests."""

    def __init__(self, capacity: int = 1_000_000, clock: Callable[[], float] = time.monotonic) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is at least 1, got {capacity}")
        self._capacity, self._clock = capacity, clock
        self._values: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()
        self.renew()
        renew_in_children(self)

    def renew(self) -> None:
        self._lock = threading.Lock()

    def put(self, keys: Sequence[bytes], values: Sequence[bytes], ttl: float) -> int:
        check(keys, values, ttl)
        with self._lock:
            over = self._clock() + ttl
            for key, value in zip(keys, values, strict=True):
                self._values[key] = over, value
                self._values.move_to_end(key)
            while len(self._values) > self._capacity:
                self._values.popitem(last=False)
        return len(keys)

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        check_bytes("keys", keys)
        with self._lock:
            now, found = self._clock(), []
            for key in keys:
                over, value = self._values.get(key, (now, b""))
                if over <= now:
                    self._values.pop(key, None)
                found.append(value if over > now else None)
            return found

    def __len__(self) -> int:
        return len(self._values)


def check(keys: Sequence[bytes], values: Sequence[bytes], ttl: float) -> None:
    """What every store asks of a put."""
    if len(keys) != len(values):
        raise ValueError(f"expected one value a key, got {len(keys)} keys and {len(values)} values")
    if not SHORTEST <= ttl <= LONGEST:
        raise ValueError(f"a time to live is from {SHORTEST} to {LONGEST:.0f} seconds (ten years), got {ttl}")
    check_bytes("keys", keys)
    check_bytes("values", values)


def check_bytes(what: str, given: Sequence[bytes]) -> None:
    """Redis would make bytes of text and numbers, a dictionary would not."""
    for each in given:
        if not isinstance(each, bytes):
            raise TypeError(f"{what} of a store are bytes, got {type(each).__name__}: encode it first")
