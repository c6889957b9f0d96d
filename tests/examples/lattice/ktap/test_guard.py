"""A store that is slow, down, full or returns garbage costs hits: never an error, never more than the deadline."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
import torch

from examples.lattice.ktap.guard import Counts, Guarded
from examples.lattice.ktap.record import Misses, TeacherId
from examples.lattice.ktap.store import UNANSWERED, InProcess, StoreError
from examples.lattice.ktap.student import look_up
from examples.lattice.ktap.teacher import write

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


TEACHER = TeacherId("teacher", 7)
PAIRS = [(user, 1) for user in range(3)]


def misses_of(store, count=3):
    return look_up(store, range(count), [1] * count, [9.0] * count, 1, 1, TEACHER)[1]


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize(
    ("given", "misses"),
    [
        (lambda value: None, Misses(absent=3)),
        (bytearray, Misses(garbage=3)),
        (lambda value: "text", Misses(garbage=3)),
        (lambda value: b"half", Misses(garbage=3)),
        (lambda value: value, Misses()),
    ],
)
def test_a_miss_is_counted_as_what_it_is_behind_a_guard_as_in_front(guarded, given, misses):
    class Own(InProcess):
        def get(self, keys):
            return [given(value) for value in super().get(keys)]

    own = Own()
    write(own, PAIRS, lambda pairs: (torch.ones(3, 1), torch.ones(3, 1)), lambda: 1.0, TEACHER)
    store = Guarded(own, deadline=30) if guarded else own
    assert misses_of(store) == misses
    if guarded:
        no_bytes = misses.garbage and given(b"") != b"half"  # of bytes a guard does not know what they should be
        expected = Counts(keys=3, garbage=3) if no_bytes else Counts(keys=3, answered=3)
        assert store.counts == expected
        store.close()


def test_a_store_that_does_not_answer_is_not_one_that_has_nothing():
    down, wrong = Guarded(Broken(fail), deadline=30), Guarded(Broken(lambda keys: [b"1"] * 7), deadline=30)
    for guard in (down, wrong):
        for _ in range(2):  # the second read is not tried
            assert misses_of(guard) == Misses(unanswered=3)
        assert (guard.counts.keys, guard.counts.answered, guard.counts.errors, guard.counts.skipped) == (6, 0, 1, 1)
        guard.close()
    let_go = threading.Event()
    slow = Guarded(Broken(lambda keys: let_go.wait(60) and [None] * 3), deadline=0.05)
    assert misses_of(slow) == misses_of(slow) == Misses(unanswered=3)
    assert (slow.counts.late, slow.counts.skipped, slow.counts.answered) == (1, 1, 0)
    let_go.set()
    slow.close()


def test_what_came_in_time_is_told_from_what_did_not():
    store, keys = Waiting(), [bytes([i]) for i in range(9)]
    store.put(keys[1:], keys[1:], 60)
    guard = Guarded(store, deadline=1.0, piece=2)
    assert guard.answers(keys) == [None, *keys[1:4], *[UNANSWERED] * 5]
    store.go.set()


@pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_whatever_a_store_raises_once_it_is_read_again(error):
    class Once(InProcess):
        calls = 0

        def get(self, keys):
            self.calls += 1
            if self.calls == 1:
                raise error("once")
            return super().get(keys)

    store = Once()
    store.put([b"a"], [b"1"], 60)
    guard = Guarded(store, deadline=30, rest=0.0)
    assert guard.get([b"a"]) == [None] and guard.counts.errors == 1 and error.__name__ in guard.counts.last_error
    until = time.monotonic() + 30
    while guard.get([b"a"]) != [b"1"] and time.monotonic() < until:
        time.sleep(0.01)
    assert guard.get([b"a"]) == [b"1"] and guard.counts.errors == 1
    guard.close()


@pytest.mark.parametrize("said", [True, None, 3, -1, 1.0, "2"])
def test_a_put_that_does_not_say_how_many_it_took_took_none_that_counts(said):
    class Says(InProcess):
        def put(self, keys, values, ttl):
            return said

    guard = Guarded(Says())
    assert guard.put([b"a", b"b"], [b"1", b"2"], 60) == 0
    assert guard.counts.unwritten == 2 and guard.counts.errors == 1 and "gave" in guard.counts.last_error


def test_of_a_put_that_took_some_the_rest_is_unwritten_and_an_interrupt_is_the_callers():
    class Some(InProcess):
        def put(self, keys, values, ttl):
            if ttl == 1:
                raise KeyboardInterrupt
            if ttl == 2:
                raise asyncio.CancelledError
            return 1

    guard = Guarded(Some())
    assert guard.put([b"a", b"b"], [b"1", b"2"], 60) == 1 and guard.counts == Counts(unwritten=1)
    assert guard.put([b"a", b"b"], [b"1", b"2"], 2) == 0 and guard.counts.unwritten == 3
    with pytest.raises(KeyboardInterrupt):
        guard.put([b"a", b"b"], [b"1", b"2"], 1)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        *[({"deadline": bad}, "a deadline is 0 seconds or more") for bad in (float("inf"), float("nan"), -1.0, 1e30)],
        *[({"rest": bad}, "a rest is 0 seconds or more") for bad in (float("nan"), -1.0)],
        *[({"piece": bad}, "piece is a whole number and at least 1") for bad in (0, -1, 1.5, True)],
    ],
)
def test_a_guard_that_could_not_work_is_not_made(settings, error):
    with pytest.raises(ValueError, match=error):
        Guarded(InProcess(), **settings)
