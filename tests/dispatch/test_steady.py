"""A time that was taken while the machine was busy is taken again, said to be so, and not kept for others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from loka_compile.dispatch import kept_times, steady
from loka_compile.dispatch.steady import Us, is_noisy, timed_us

counted = steady._waits  # tests/conftest.py replaces it


@pytest.fixture
def waiting(monkeypatch):
    """waiting(ms): each run that is watched now waits so long for a core, of the 4 ms that it takes."""
    clock = {"waited": 0.0, "each": 0.0}

    def waits() -> dict[str, int]:
        clock["waited"] += clock["each"] / 2  # asked before and after a run
        return {"a": int(clock["waited"] * 2e6), "b": 0}

    monkeypatch.setattr(steady, "_waits", waits)
    return lambda ms: clock.update(each=ms)


def four_ms() -> None:
    time.sleep(0.004)


def test_a_run_that_waited_for_a_core_is_noisy(waiting) -> None:
    assert not is_noisy(timed_us(four_ms))
    waiting(0.2)
    assert not is_noisy(timed_us(four_ms))
    waiting(3)
    assert is_noisy(us := timed_us(four_ms)) and us >= 4000
    assert not is_noisy(timed_us(four_ms, watched=False)) and not is_noisy(timed_us(lambda: None))


def test_without_the_count_the_cpu_time_tells(monkeypatch) -> None:
    monkeypatch.setattr(steady, "_waits", lambda: None)
    assert is_noisy(timed_us(four_ms))  # no thread of this process computed
    monkeypatch.setattr(time, "process_time", time.perf_counter)  # one did, all the time
    assert not is_noisy(timed_us(four_ms))


def test_a_noisy_time_is_taken_once_more() -> None:
    taken = [Us(9.0, noisy=True), Us(7.0), Us(1.0)]
    us = steady.steady(lambda: taken.pop(0))
    assert us == 7 and not us.noisy and len(taken) == 1
    taken = [Us(7.0, noisy=True), Us(9.0, noisy=True), Us(1.0)]
    us = steady.steady(lambda: taken.pop(0))
    assert us == 7 and us.noisy and len(taken) == 1
    assert steady.steady(lambda: 5.0) == 5 and not is_noisy(5.0)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("LOKA_CACHE_DIR", str(tmp_path))

    def forget() -> None:
        for each in (kept_times._file, kept_times.times):
            each.cache_clear()

    forget()
    yield forget
    forget()


def test_it_serves_this_process_and_is_not_kept_for_another(kept, waiting) -> None:
    waiting(3)
    assert kept_times.remembered("busy", lambda: steady.best_us(four_ms)) >= 4000
    waiting(0)
    assert kept_times.remembered("quiet", lambda: steady.best_us(four_ms)) >= 4000
    assert kept_times.noisy() == {"busy"} and kept_times.recall("busy")
    assert set(json.loads(kept_times._file().read_text())) == {"quiet"}
    kept()  # another process
    assert kept_times.recall("busy") is None and not kept_times.noisy() and kept_times.recall("quiet")
    kept_times.remember("busy", 3.0)
    assert "busy" in json.loads(kept_times._file().read_text())


def test_what_another_process_measured_in_peace_stays_on_disk(kept) -> None:
    kept_times.remember("gemm", 5.0)
    kept_times.remember("gemm", Us(9.0, noisy=True))
    kept_times.remember("other", 1.0)
    assert json.loads(kept_times._file().read_text()) == {"gemm": 5.0, "other": 1.0}


@pytest.mark.skipif(counted() is None, reason="this system does not count what threads wait")
def test_another_process_on_the_same_core_is_seen(monkeypatch) -> None:
    monkeypatch.setattr(steady, "_waits", counted)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])  # on that core too
    try:
        assert any(is_noisy(timed_us(lambda: sum(range(3_000_000)))) for _ in range(5))
    finally:
        other.kill()
        other.wait()
        os.sched_setaffinity(0, cores)
