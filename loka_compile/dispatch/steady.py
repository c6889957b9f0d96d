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
REPEATS = 7
MIN_TOTAL_US, MAX_TOTAL_US = 10_000, 100_000
"""A kernel is run REPEATS times, a short one for at least so long, a long one until that."""
HOPELESS = 1.15
"""A kernel that takes so many times what is to be beaten, without its casts, has no chance: noise is less."""
FAR = 20.0
"""One that takes so many times as long in its second run is not run again."""
LONG_US, GENERATED_US = 1_000, 20_000
"""Two runs of so long are no interruptions; a first run generates code, which takes less than that."""
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


def best_us(run: Callable[[], Any], beat_us: float = float("inf")) -> Us:
    """The best of a few runs, and of a few more where the machine was busy meanwhile."""
    return steady(lambda: _fastest_us(run, beat_us))


def _fastest_us(run: Callable[[], Any], beat_us: float) -> float:
    """The best of a few runs (what else runs on the machine only ever adds); fewer where these are far behind.

    The first does not count otherwise: oneDNN generates a kernel's code in it, milliseconds for a GEMM of microseconds.
    Nor is a short kernel given up before it ran REPEATS times, as a run that was interrupted takes milliseconds.
    """
    hopeless = max(HOPELESS**3 * beat_us, beat_us + GENERATED_US)
    first = timed_us(run)
    if first > hopeless and is_noisy(first):  # other work was in the way: that was no time of this kernel
        first = timed_us(run)
    if first > hopeless:
        return first
    times: list[float] = []
    while (len(times) < REPEATS and sum(times) < MAX_TOTAL_US) or (
        sum(times) < MIN_TOTAL_US and len(times) < 10 * REPEATS
    ):
        times.append(timed_us(run, watched=first > SHORT_US))
        behind, long = (HOPELESS**2, LONG_US) if len(times) > 1 else (FAR, GENERATED_US)
        if min(times) > behind * beat_us and (len(times) >= REPEATS or min(times) > long):
            break
    return min(times)


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
