"""The key-value store between teacher and student: one interface, in this process or on Redis (redis_store.py)."""

from __future__ import annotations

import operator
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Protocol

from examples.lattice.ktap.forks import renew_in_children

SHORTEST, LONGEST = 1e-3, 10 * 365 * 86400.0
"""Seconds a value may live: Redis counts milliseconds, and takes no time that has no end."""


class Unanswered(Enum):
    """In place of a value: the store gave no answer, so that nobody here knows what it holds."""

    UNANSWERED = "unanswered"


UNANSWERED = Unanswered.UNANSWERED


class StoreError(Exception):
    """The store did not do what it was asked to: it is down, full, or takes too long."""


class Store(Protocol):
    """Values by key, bytes both, each for a time to live to the millisecond; both calls may raise StoreError."""

    def put(self, keys: Sequence[bytes], values: Sequence[bytes], ttl: float) -> int:
        """Writes all, and says as an int how many it took; each is gone `ttl` seconds later."""
        ...

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """One value a key; None where there is none or its time is over."""
        ...


class InProcess:
    """A dictionary. At most `capacity` values: the oldest written go first. `clock` gives seconds, for tests."""

    def __init__(self, capacity: int = 1_000_000, clock: Callable[[], float] = time.monotonic) -> None:
        at_least_one("capacity", capacity)
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
    check_ttl(ttl)
    check_bytes("keys", keys)
    check_bytes("values", values)


def check_ttl(ttl: float) -> None:
    """Whoever writes asks before the first write: behind a guard a wrong time would only cost all writes."""
    if not SHORTEST <= ttl <= LONGEST:
        raise ValueError(f"a time to live is from {SHORTEST} to {LONGEST:.0f} seconds (ten years), got {ttl}")


def taken(said: object, asked: int, by: object) -> int:
    """How many of the values that it was asked to write a store took, by what its put said."""
    if isinstance(said, bool) or not hasattr(said, "__index__"):  # numpy's whole numbers have it, too
        raise TypeError(f"a store's put gives how many values it took, {type(by).__name__}'s gave {said!r}")
    count = operator.index(said)
    if not 0 <= count <= asked:
        raise ValueError(f"a store's put gives how many of {asked} values it took, {type(by).__name__}'s gave {count}")
    return count


def at_least_one(name: str, count: object) -> None:
    """A setting that counts something."""
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"{name} is a whole number and at least 1, got {count!r}")


def check_bytes(what: str, given: Sequence[bytes]) -> None:
    """Redis would make bytes of text and numbers, a dictionary would not."""
    for each in given:
        if not isinstance(each, bytes):
            raise TypeError(f"{what} of a store are bytes, got {type(each).__name__}: encode it first")
