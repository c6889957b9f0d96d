"""A store that is slow, down, full or returns garbage costs hits: never an error, never more than the deadline."""

from __future__ import annotations

import threading
import time

import pytest

from examples.lattice.ktap.guard import Guarded
from examples.lattice.ktap.store import InProcess, StoreError

SWITCH = 0.5  # of threads on a busy machine


class Broken:
    """Does what `answer` does."""

    def __init__(self, answer):
        self.answer, self.calls = answer, 0

    def get(self, keys):
        self.calls += 1
        return self.answer(keys)

    def put(self, keys, values, ttl):
        raise StoreError("full")


def fail(keys):
    raise StoreError("down")


def timed(guard, keys=(b"a",)):
    start = time.monotonic()
    return guard.get(list(keys)), time.monotonic() - start


def test_a_good_store_is_passed_through():
    guard = Guarded(InProcess(), deadline=30)
    assert guard.put([b"a"], [b"1"], 60) == 1
    assert guard.get([b"a", b"b"]) == [b"1", None]
    assert guard.counts.answered == guard.counts.keys == 2 and not guard.counts.errors
    guard.close()


def test_a_slow_store_costs_the_deadline_once_and_nothing_while_it_is_busy():
    let_go = threading.Event()
    guard = Guarded(Broken(lambda keys: let_go.wait(60) and [b"1"]), deadline=0.05)
    found, took = timed(guard)
    assert found == [None] and 0.05 <= took < 0.05 + SWITCH
    for _ in range(20):
        assert timed(guard)[1] < 0.05 + SWITCH
    assert guard.counts.late == 1 and guard.counts.skipped == 20 and guard.store.calls == 1
    let_go.set()
    until = time.monotonic() + 30
    while guard.get([b"a"]) == [None] and time.monotonic() < until:
        time.sleep(0.01)
    assert guard.get([b"a"]) == [b"1"]  # it is asked again
    guard.close()


def test_a_store_that_is_down_is_left_alone_for_a_while():
    guard = Guarded(Broken(fail), deadline=30, rest=0.3)
    assert guard.get([b"a"]) == [None] and guard.get([b"a", b"b"]) == [None, None]
    assert guard.store.calls == 1 and guard.counts.errors == 1 and "down" in guard.counts.last_error
    time.sleep(0.35)
    assert guard.get([b"a"]) == [None] and guard.store.calls == 2
    guard.close()


def test_a_full_store_loses_what_it_did_not_take_and_nothing_else():
    guard = Guarded(Broken(fail))
    assert guard.put([b"a", b"b"], [b"1", b"2"], 60) == 0
    assert guard.counts.unwritten == 2 and "full" in guard.counts.last_error
    guard.close()


@pytest.mark.parametrize(
    "answer", [lambda keys: [b"1"] * 7, lambda keys: None, lambda keys: ["text", 3, None][: len(keys)]]
)
def test_garbage_is_misses(answer):
    guard = Guarded(Broken(answer), deadline=30, rest=0.0)
    assert guard.get([b"a", b"b", b"c"]) == [None] * 3
    guard.close()


def test_readers_in_threads_get_their_own_answers():
    store = InProcess()
    keys = [str(i).encode() for i in range(50)]
    store.put(keys, keys, 60)
    guard, wrong = Guarded(store, deadline=30), []

    def read(key):
        for _ in range(50):
            if guard.get([key]) not in ([key], [None]):  # None: another read was under way
                wrong.append(key)

    threads = [threading.Thread(target=read, args=(key,)) for key in keys[:8]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and guard.counts.answered > 0
    guard.close()


class Waiting(InProcess):
    """Answers until its third call, which waits to be let go."""

    def __init__(self):
        super().__init__()
        self.calls, self.go = 0, threading.Event()

    def get(self, keys):
        self.calls += 1
        if self.calls == 3:
            self.go.wait(30)
        return super().get(keys)


def test_what_has_come_by_the_deadline_is_taken():
    store, keys = Waiting(), [bytes([i]) for i in range(9)]
    store.put(keys, keys, 60)
    guard = Guarded(store, deadline=1.0, piece=2)
    assert guard.get(keys) == [*keys[:4], *[None] * 5]
    assert (guard.counts.answered, guard.counts.late, guard.counts.errors) == (4, 1, 0)
    store.go.set()
    until = time.monotonic() + 30
    while guard.get(keys) != keys and time.monotonic() < until:
        time.sleep(0.01)
    assert guard.get(keys) == keys and store.calls < 3 + 5 * 5  # what was given up is not read on


def test_a_store_that_fails_on_the_way_costs_the_rest_alone():
    class Failing(InProcess):
        def get(self, keys):
            if keys[0] == b"\x04":
                raise StoreError("down")
            return super().get(keys)

    store, keys = Failing(), [bytes([i]) for i in range(9)]
    store.put(keys, keys, 60)
    guard = Guarded(store, deadline=5.0, piece=4)
    assert guard.get(keys) == [*keys[:4], *[None] * 5] and guard.counts.errors == 1 and guard.counts.answered == 4
