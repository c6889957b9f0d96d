"""The teacher works in the background, drops what it cannot keep up with, and survives its own failures."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
import torch

from examples.lattice.ktap.guard import Guarded
from examples.lattice.ktap.record import Misses, TeacherId, key
from examples.lattice.ktap.store import InProcess, StoreError
from examples.lattice.ktap.student import look_up
from examples.lattice.ktap.teacher import Background, write

WIDTH, TASKS = 2, 1
TEACHER = TeacherId("teacher", 7)


def score(pairs):
    both = torch.tensor(pairs, dtype=torch.float32)
    return both, both.sum(dim=1, keepdim=True)


def test_what_is_written_can_be_read_for_its_time():
    now = [0.0]
    store = InProcess(clock=lambda: now[0])
    write(store, [(1, 2), (3, 4)], score, clock=lambda: 10.0, teacher=TEACHER, ttl=5.0)
    found, _ = look_up(store, [3, 1], [4, 2], [11.0, 11.0], WIDTH, TASKS, TEACHER)
    assert found.embedding.tolist() == [[3, 4], [1, 2]] and found.logits.tolist() == [[7], [3]]
    now[0] = 5.0
    assert store.get([key(1, 2, TEACHER)]) == [None]


@pytest.mark.parametrize("way", ["write", "background"])
def test_a_record_is_of_the_second_in_which_scoring_ended(way):
    """What happens while a batch is scored may be in it: for an impression made meanwhile it is a miss."""
    now, clicked = [100.0], {}

    def slow(pairs):
        now[0] = 105.0  # shown at 102, and clicked, before the features are read
        clicked[1, 2] = 1.0
        known = torch.tensor([[clicked.get(pair, 0.0)] for pair in pairs])
        return known.expand(-1, WIDTH), known

    store = InProcess()
    if way == "write":
        write(store, [(1, 2)], slow, clock=lambda: now[0], teacher=TEACHER)
    else:
        teacher = Background(store, slow, clock=lambda: now[0], teacher=TEACHER)
        teacher.ask([(1, 2)])
        assert teacher.idle(60)
        teacher.stop()
    found, misses = look_up(store, [1, 1, 1], [2, 2, 2], [102.0, 105.0, 105.5], WIDTH, TASKS, TEACHER)
    assert found.hit.tolist() == [False, False, True] and misses == Misses(late=2)


def test_pairs_are_scored_in_the_background():
    store = InProcess()
    teacher = Background(store, score, clock=lambda: 7.0, teacher=TEACHER, batch=3)
    teacher.ask([(user, 0) for user in range(10)] + [(0, 0)])
    assert teacher.idle(60) and (teacher.written, teacher.unwritten) == (10, 0) and not teacher.failures
    found, _ = look_up(store, range(10), [0] * 10, [7.5] * 10, WIDTH, TASKS, TEACHER)
    assert bool(found.hit.all())
    teacher.stop()


def test_of_too_many_the_oldest_are_dropped_and_asking_never_blocks():
    entered, go = threading.Event(), threading.Event()

    def slow(pairs):
        entered.set()
        assert go.wait(60)
        return score(pairs)

    store = InProcess()
    teacher = Background(store, slow, clock=lambda: 7.0, teacher=TEACHER, batch=1, most=3)
    teacher.ask([(100, 0)])
    assert entered.wait(60)
    teacher.ask([(user, 0) for user in range(10)])
    go.set()
    assert teacher.idle(60) and teacher.dropped == 7
    values = store.get([key(user, 0, TEACHER) for user in (100, *range(10))])
    assert [value is not None for value in values] == [True] + [False] * 7 + [True] * 3
    teacher.stop()


def test_a_bad_batch_does_not_end_it():
    def sometimes(pairs):
        if pairs[0][0] == 0:
            raise RuntimeError("out of memory")
        return score(pairs)

    store = InProcess()
    teacher = Background(store, sometimes, clock=lambda: 7.0, teacher=TEACHER, batch=1)
    teacher.ask([(0, 0), (1, 0)])
    assert teacher.idle(60) and list(teacher.failures) == ["RuntimeError: out of memory"]
    assert store.get([key(1, 0, TEACHER)]) != [None] and (teacher.written, teacher.unwritten) == (1, 1)
    teacher.stop()


@pytest.mark.parametrize("guarded", [False, True])
def test_what_a_store_did_not_take_is_not_written_and_can_be_asked_for_again(guarded):
    class Sometimes(InProcess):
        down = True

        def put(self, keys, values, ttl):
            if self.down:
                raise StoreError("down")
            return super().put(keys, values, ttl)

    store = Sometimes()
    teacher = Background(Guarded(store) if guarded else store, score, clock=lambda: 7.0, teacher=TEACHER)
    teacher.ask([(1, 0), (2, 0)])
    assert teacher.idle(60) and (teacher.written, teacher.unwritten) == (0, 2)
    assert list(teacher.failures) == ["2 of 2 pairs: not finite, or not taken" if guarded else "StoreError: down"]
    store.down = False
    teacher.ask([(1, 0), (2, 0)])
    assert teacher.idle(60) and (teacher.written, teacher.unwritten) == (2, 2)
    assert None not in store.get([key(1, 0, TEACHER), key(2, 0, TEACHER)])
    teacher.stop()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_cost_their_own_pair(bad):
    store = InProcess()
    teacher = Background(
        store, lambda pairs: (score(pairs)[0], torch.tensor([[1.0], [bad]])), clock=lambda: 7.0, teacher=TEACHER
    )
    teacher.ask([(1, 0), (2, 0)])
    assert teacher.idle(60) and (teacher.written, teacher.unwritten) == (1, 1) and len(teacher.failures) == 1
    assert [value is None for value in store.get([key(1, 0, TEACHER), key(2, 0, TEACHER)])] == [False, True]
    teacher.stop()


@pytest.mark.parametrize("way", ["write", "background"])
def test_two_trainings_of_a_teacher_are_never_read_as_one(way):
    """A batch half of which is of the old embedding space would be noise to the student."""
    store, new = InProcess(), TeacherId("teacher", 8)
    write(store, [(1, 1), (1, 2)], score, clock=lambda: 1.0, teacher=TEACHER)
    if way == "write":
        write(store, [(1, 2)], score, clock=lambda: 2.0, teacher=new)
    else:
        teacher = Background(store, score, clock=lambda: 2.0, teacher=new)
        teacher.ask([(1, 2)])
        assert teacher.idle(60)
        teacher.stop()
    for who, hits in ((TEACHER, [True, False]), (new, [False, True])):
        found, misses = look_up(store, [1, 1], [1, 2], [9.0, 9.0], WIDTH, TASKS, who)
        assert found.hit.tolist() == hits and misses == Misses(other=1)
    beside = TeacherId("next", 8)  # of another name: beside the first
    write(store, [(1, 1)], score, clock=lambda: 2.0, teacher=beside)
    assert look_up(store, [1], [1], [9.0], WIDTH, TASKS, TEACHER)[0].hit.all()
    assert look_up(store, [1], [1], [9.0], WIDTH, TASKS, beside)[0].hit.all()


class Silent(InProcess):
    """A store of before stores said how many values they took."""

    def put(self, keys, values, ttl):
        super().put(keys, values, ttl)


@pytest.mark.parametrize(
    ("store", "given", "clock", "said"),
    [
        (InProcess(), lambda pairs: score(pairs[:1]), 7.0, "of 2 it gave (1, 2) and (1, 1)"),
        (InProcess(), lambda pairs: (score(pairs)[0], torch.ones(2)), 7.0, "of 2 it gave (2, 2) and (2,)"),
        (InProcess(), score, float("nan"), "clock gives the log's seconds, got nan"),
        (Silent(), score, 7.0, "Silent's gave None"),
    ],
)
def test_a_wrong_score_clock_or_store_is_said_and_does_not_end_it(store, given, clock, said):
    teacher = Background(store, given, clock=lambda: clock, teacher=TEACHER)
    for count in (1, 2):
        teacher.ask([(1, 0), (2, 0)])
        assert teacher.idle(60) and (teacher.written, teacher.unwritten) == (0, 2 * count)
        assert len(teacher.failures) == count and said in teacher.failures[-1]
    teacher.stop()


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize(("said", "written"), [(2, 2), (np.int64(2), 2), (1, 1), (True, 0), (3, 0), (None, 0)])
def test_written_is_what_the_store_says_that_it_took(guarded, said, written):
    class Says(InProcess):
        def put(self, keys, values, ttl):
            return said

    store = Guarded(Says()) if guarded else Says()
    teacher = Background(store, score, clock=lambda: 7.0, teacher=TEACHER)
    teacher.ask([(1, 0), (2, 0)])
    assert teacher.idle(60) and (teacher.written, teacher.unwritten) == (written, 2 - written)
    assert len(teacher.failures) == (written < 2)
    teacher.stop()


def test_whatever_a_batch_raises_the_teacher_goes_on():
    def once(pairs):
        if pairs[0][0] == 0:
            raise asyncio.CancelledError("once")
        return score(pairs)

    teacher = Background(InProcess(), once, clock=lambda: 7.0, teacher=TEACHER, batch=1)
    teacher.ask([(0, 0), (1, 0)])
    assert teacher.idle(60) and list(teacher.failures) == ["CancelledError: once"]
    assert (teacher.written, teacher.unwritten) == (1, 1)
    teacher.stop()


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize(
    ("settings", "error"),
    [
        *[({"ttl": bad}, "a time to live is from") for bad in (0.0, -1.0, float("nan"), float("inf"))],
        *[({"batch": bad}, "batch is a whole number and at least 1") for bad in (0, -1, 1.5)],
        *[({"most": bad}, "most is a whole number and at least 1") for bad in (0, -1, float("nan"))],
    ],
)
def test_a_teacher_that_could_not_work_is_not_made(guarded, settings, error):
    store = Guarded(InProcess()) if guarded else InProcess()
    with pytest.raises(ValueError, match=error):
        Background(store, score, clock=lambda: 7.0, teacher=TEACHER, **settings)
    if "ttl" in settings:
        with pytest.raises(ValueError, match=error):
            write(store, [(1, 2)], score, clock=lambda: 7.0, teacher=TEACHER, **settings)
