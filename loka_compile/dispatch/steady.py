"""Times, and whether the machine was busy with other work while they were taken.

A thread that is ready to run and waits for a core loses that time to other work. Linux counts the wait of every thread
(`/proc/self/task/*/schedstat`, the second number, in nanoseconds). On other systems the CPU time of the process tells:
a computation uses at least as much CPU time as wall time, on however many threads.

A short run fits between two interruptions, so the fastest of many short runs is right on a busy machine too. Only long
runs are watched: reading the counters takes as long as a short run does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

BUSY = 1.3
"""Wall time over what it would have been without waiting, from which on a time is noisy."""
SHORT_US = 1_000.0
"""Runs of less are not watched. A scheduler lets a thread run for longer."""
HERE = "measured on this CPU"
ON_A_BUSY_MACHINE = "measured on this CPU while it was busy with other work"
"""The source of a time."""


class Us(float):
    """Microseconds. noisy: other work ran meanwhile, so that it may really be less."""

    noisy: bool

    def __new__(cls, us: float, noisy: bool = False) -> Us:
        made = super().__new__(cls, us)
        made.noisy = noisy
        return made


def is_noisy(us: float) -> bool:
    return isinstance(us, Us) and us.noisy


def timed_us(run: Callable[[], Any], watched: bool = True) -> Us:
    """Microseconds of one run; noisy where a thread of this process waited for a core for much of it."""
    waits, cpu = (_waits() if watched else None), time.process_time()
    start = time.perf_counter()
    run()
    us = (time.perf_counter() - start) * 1e6
    if not watched or us < SHORT_US:
        return Us(us)
    waited = us - (time.process_time() - cpu) * 1e6 if waits is None else _longest(waits, _waits() or {})
    return Us(us, us > BUSY * (us - min(waited, us)))


def steady(measure: Callable[[], float]) -> Us:
    """The result of `measure`. If it is noisy it is measured once more: the smaller time, noisy if both are."""
    first = measure()
    if not is_noisy(first):
        return Us(first)
    second = measure()
    return Us(min(first, second), is_noisy(second))


def _longest(before: dict[str, int], after: dict[str, int]) -> float:
    """Microseconds that the thread waited which waited most."""
    return max((waited - before.get(thread, waited) for thread, waited in after.items()), default=0) / 1e3


def _waits() -> dict[str, int] | None:
    """Nanoseconds that each thread has waited for a core so far; None where the system does not count them."""
    try:
        threads = os.listdir("/proc/self/task")
    except OSError:
        return None
    waits = {}
    for thread in threads:
        try:
            with open(f"/proc/self/task/{thread}/schedstat", "rb") as file:
                waits[thread] = int(file.read().split()[1])
        except (OSError, ValueError, IndexError):  # the thread has ended, or nothing is counted
            continue
    return waits or None
