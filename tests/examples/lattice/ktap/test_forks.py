"""What has threads or locks works in a child of `fork` too, whatever its parent was in the middle of."""

from __future__ import annotations

import json
import os
import select
import signal
import threading

import pytest
import torch

from examples.lattice.ktap.guard import Guarded
from examples.lattice.ktap.record import TeacherId
from examples.lattice.ktap.store import InProcess
from examples.lattice.ktap.teacher import Background

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # that is what is tested
]

TEACHER = TeacherId("teacher", 7)


def in_a_child(do):
    """What `do` gives in a forked child, which has a minute."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, json.dumps(do()).encode())
        finally:
            os._exit(0)
    os.close(write)
    ready, _, _ = select.select([read], [], [], 60)
    if not ready:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(read, "rb") as answer:
        said = answer.read()
    assert said, "the child hangs, or has failed"
    return json.loads(said)


def test_a_guard_reads_in_the_child_and_in_the_parent():
    store = InProcess()
    store.put([b"a"], [b"1"], 600)
    guard = Guarded(store, deadline=30)
    assert guard.get([b"a"]) == [b"1"]
    assert in_a_child(lambda: [guard.get([b"a"]) == [b"1"] for _ in range(3)] + [guard.counts.answered]) == [
        True
    ] * 3 + [3]
    assert guard.get([b"a"]) == [b"1"] and guard.counts.answered == 2
    guard.close()


@pytest.mark.redis
def test_a_guard_of_redis_reads_in_the_child_and_in_the_parent(redis_server):
    from examples.lattice.ktap.redis_store import OnRedis

    guard = Guarded(OnRedis(redis_server.url, seconds=30), deadline=30)
    keys = [b"fork:%d" % number for number in range(50)]
    assert guard.put(keys, keys, 600) == 50 and guard.get(keys) == keys
    assert in_a_child(lambda: all(guard.get(keys[n:]) == keys[n:] for n in range(20)))
    assert all(guard.get(keys[n:]) == keys[n:] for n in range(20))
    guard.close()


def test_a_guard_forked_while_its_parent_waits_for_the_store():
    parent, entered, go = os.getpid(), threading.Event(), threading.Event()

    class Slow(InProcess):
        def get(self, keys):
            if os.getpid() == parent:
                entered.set()
                go.wait(60)
            return super().get(keys)

    store = Slow()
    store.put([b"a"], [b"1"], 600)
    guard = Guarded(store, deadline=0.01)
    assert guard.get([b"a"]) == [None] and entered.wait(60)

    def read():
        guard.deadline = 30
        return guard.get([b"a"]) == [b"1"]

    assert in_a_child(read)
    go.set()
    guard.close()


def test_a_dictionary_forked_while_a_thread_is_in_it():
    store = InProcess()
    store.put([b"a"], [b"1"], 600)
    with store._lock:
        assert in_a_child(lambda: store.get([b"a"]) == [b"1"])


def test_a_teacher_works_in_the_child_and_leaves_its_parents_pairs_to_the_parent():
    entered, go, parent = threading.Event(), threading.Event(), os.getpid()

    def score(pairs):
        if os.getpid() == parent:
            entered.set()
            assert go.wait(60)
        return torch.ones(len(pairs), 2), torch.ones(len(pairs), 1)

    teacher = Background(InProcess(), score, clock=lambda: 7.0, teacher=TEACHER, batch=1)
    teacher.ask([(1, 0), (2, 0)])
    assert entered.wait(60)

    def ask():
        quiet = teacher.idle(0)
        teacher.ask([(3, 0)])
        done = [quiet, teacher.idle(30), teacher.written]
        teacher.stop()
        return done

    assert in_a_child(ask) == [True, True, 1]
    go.set()
    assert teacher.idle(60) and teacher.written == 2
    teacher.stop()


def test_no_thread_to_be_had_is_a_miss(monkeypatch):
    guard = Guarded(InProcess(), deadline=30)
    guard.put([b"a"], [b"1"], 600)

    def fail(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        assert guard.get([b"a"]) == [None] and "can't start" in guard.counts.last_error
    assert guard.get([b"a"]) == [b"1"]
    guard.close()
    assert guard.get([b"a"]) == [b"1"]  # a closed one starts again
    guard.close()


def test_a_teacher_without_a_thread_keeps_what_it_is_asked_for(monkeypatch):
    def fail(thread):
        raise RuntimeError("can't start new thread")

    def score(pairs):
        return torch.ones(len(pairs), 2), torch.ones(len(pairs), 1)

    Background(InProcess(), score, clock=lambda: 7.0, teacher=TEACHER).stop()  # never asked
    teacher = Background(InProcess(), score, clock=lambda: 7.0, teacher=TEACHER)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        teacher.ask([(1, 0)])
    assert list(teacher.failures) == ["RuntimeError: can't start new thread"]
    teacher.ask([(2, 0)])
    assert teacher.idle(60) and teacher.written == 2
    teacher.stop()
    teacher.ask([(3, 0)])
    assert teacher.dropped == 1 and teacher.idle(0)
