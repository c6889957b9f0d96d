"""Questions that are asked together get their own answers; one that hangs or fails keeps no other back."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from examples.audience.reach import together
from examples.audience.reach.together import Together


def echo(asks, seconds):
    return {"a": [f"a {ask}" for ask in asks], "b": [f"b {ask}" for ask in asks]}


def test_each_gets_its_own_answers_in_fewer_calls():
    calls = []

    def slow(asks, seconds):
        calls.append(len(asks))
        time.sleep(0.01)
        return echo(asks, seconds)

    asking = Together(slow)
    questions = [[f"{i}.{j}" for j in range(i % 3 + 1)] for i in range(60)]
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda own: asking.ask(own, 30), questions))
    assert found == [echo(own, 30) for own in questions]
    assert sum(calls) == sum(map(len, questions)) and len(calls) < 60


def test_a_question_alone_waits_for_nobody():
    assert Together(echo).ask(["x"], 30) == {"a": ["a x"], "b": ["b x"]}
    assert Together(echo).ask([], 30) == {"a": [], "b": []}


def test_a_group_is_bounded_but_for_a_question_that_is_larger():
    sizes, free = [], threading.Event()

    def call(asks, seconds):
        free.wait(30)
        sizes.append(len(asks))
        return echo(asks, seconds)

    asking = Together(call)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(asking.ask, list(range(size)), 30) for size in (1, 40, 40, 40, 500)]
        free.set()
        assert [len(future.result()["a"]) for future in futures] == [1, 40, 40, 40, 500]
    assert sum(sizes) == 621 and max(sizes) <= 500 + together.MOST


def test_a_call_that_hangs_keeps_others_back_for_a_moment_only():
    hang = threading.Event()

    def call(asks, seconds):
        if asks == ["hangs"]:
            hang.wait(seconds)
        return echo(asks, seconds)

    asking = Together(call)
    with ThreadPoolExecutor(4) as pool:
        stuck = pool.submit(asking.ask, ["hangs"], 20)
        while not asking._under_way:
            time.sleep(0.001)
        assert pool.submit(asking.ask, ["goes on"], 20).result(timeout=15) == echo(["goes on"], 20)
        assert not stuck.done()
        hang.set()
        assert stuck.result(timeout=15) == echo(["hangs"], 20)


def test_one_that_leads_and_fails_says_so_and_the_others_are_free():
    fail = [True]

    def call(asks, seconds):
        if fail.pop() if fail else False:
            raise RuntimeError("no")
        return echo(asks, seconds)

    asking = Together(call)
    with pytest.raises(RuntimeError, match="no"):
        asking.ask(["x"], 30)
    assert asking.ask(["y"], 30) == echo(["y"], 30)


def test_of_many_that_fail_and_hang_each_has_its_own_answers_or_its_calls_error():
    """Questions larger than a call among them, which wait no longer than others."""
    rng = random.Random(0)

    def call(asks, seconds):
        chance = rng.random()
        if chance < 0.05:
            raise RuntimeError("no")
        time.sleep(0.2 if chance < 0.1 else 0.01 * rng.random())
        return echo(asks, seconds)

    asking, answers, errors = Together(call), [], []

    def client(number):
        for turn in range(40):
            own = [f"{number} {turn} {i}" for i in range((1, 1, 2, 5, 2 * together.MOST)[(number + turn) % 5])]
            try:
                answers.append((asking.ask(own, 60), echo(own, 60)))
            except RuntimeError:
                errors.append(own)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(client, range(16)))
    assert len(answers) + len(errors) == 640 and errors
    assert all(found == wanted for found, wanted in answers)
    assert not asking._waiting and not asking._under_way
