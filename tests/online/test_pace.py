"""When to measure again: never beyond the budget, never too often, one caller at a time."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from loka_compile.online.pace import AT_LEAST, Pace

seconds = st.floats(1e-5, 1.0)


@given(call=seconds, cost=seconds, budget=st.floats(0.001, 2.0), calls=st.integers(1, 3000))
def test_measuring_keeps_to_its_share(call, cost, budget, calls):
    pace = Pace(budget, cost)
    last = -AT_LEAST
    for number in range(calls):
        if pace.due():
            assert number - last >= AT_LEAST
            last = number
            pace.add_measured(cost)
        pace.add_call(call)
        assert pace.overhead <= budget * 1.001
    assert pace.calls == calls


@given(call=seconds, cost=seconds, budget=st.floats(0.001, 2.0))
def test_it_tells_when_it_is_next_due(call, cost, budget):
    pace = Pace(budget, cost)
    pace.add_call(call)
    announced = pace.next_in
    waited = 0
    while not pace.due() and waited < 5000:
        pace.add_call(call)
        waited += 1
    assert waited == 5000 or abs(waited - announced) <= 1


def test_it_is_measured_in_the_end():
    pace = Pace(0.01, cost=0.2)
    due = []
    for number in range(10_000):
        if pace.due():
            due.append(number)
            pace.add_measured(0.2)
        pace.add_call(0.01)
    assert due == [2000, 4000, 6000, 8000] or len(due) in (4, 5)


def test_no_budget_no_measuring():
    pace = Pace(0.0)
    for _ in range(500):
        pace.add_call(1.0)
        assert not pace.due()


def test_a_backward_that_comes_later_counts():
    pace = Pace(0.5, cost=0.1)
    pace.add_measured(0.2)
    pace.add_extra(0.3)
    pace.add_call(1.0)
    assert pace.overhead == 0.5 and pace.cost == 0.5


def test_of_many_threads_one_is_told_to_measure():
    pace = Pace(1.0)
    for _ in range(AT_LEAST):
        pace.add_call(1.0)
    told, ready = [], threading.Barrier(8)

    def ask():
        ready.wait()
        told.append(pace.due())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == [False] * 7 + [True]
