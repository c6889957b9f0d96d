"""A race whose two halves disagree was disturbed: its verdict is not kept where it may be the other one."""

from __future__ import annotations

import itertools
import math
import time

import pytest
import torch

from loka_compile.trial.laps import LAP_CALLS, Times, fastest_us


@pytest.mark.parametrize(
    ("halves", "fastest", "spread"),
    [
        (([10.0, 20.0], [10.1, 19.9]), [10.0, 19.9], 1.01),
        (([10.0, 20.0], [15.0, 20.0]), [10.0, 20.0], 1.5),
        (([10.0], [math.inf]), [10.0], math.inf),
        (([], []), [], 1.0),
    ],
)
def test_times_are_the_fastest_of_both_halves(halves, fastest, spread):
    times = Times(halves)
    assert times == fastest and times.spread == pytest.approx(spread)
    assert times.steady == (spread < 1.03)


def test_what_the_difference_could_turn_round_is_not_settled():
    disturbed = Times(([10.0, 12.0], [14.0, 12.0]))
    assert not disturbed.settles(1.2) and not disturbed.settles(0.8)
    assert disturbed.settles(1.5) and disturbed.settles(0.5)
    assert Times(([10.0, 10.1], [10.1, 10.0])).settles(1.01)  # either will do, and the machine was quiet


def test_rounds_go_on_while_other_work_is_in_the_way():
    """Calls that take 1 ms, and 3 ms more in the first odd round alone; then they are steady, and the race is over."""
    calls: list[int] = []

    def call(x):
        calls.append(len(calls))
        time.sleep(0.004 if len(calls) in (3, 4) else 0.001)
        return (x,)

    times = fastest_us([call, lambda x: time.sleep(0.01) or (x,)], [torch.ones(2)], ())
    assert times.settles(times[1] / times[0]) and 900 < times[0] < 4000


@pytest.mark.parametrize(("written", "calls"), [((), LAP_CALLS), ((0,), 1)])
def test_a_short_call_is_repeated_in_its_turn_unless_it_writes(written, calls):
    """Its weights are in the cache then, as in serving, and not those of the graph before it."""
    turns: list[str] = []
    first, second = (lambda x, name=name: turns.append(name) or (x,) for name in "ab")
    fastest_us([first, second], [torch.ones(2)], written, 1, 1)
    runs = [len(list(run)) for _, run in itertools.groupby(turns[2:])]  # after the two that generate code
    assert runs == [calls, calls]


def test_a_call_that_fills_its_turn_is_not_repeated():
    calls: list[int] = []
    fastest_us([lambda x: calls.append(1) or time.sleep(0.0011) or (x,)], [torch.ones(2)], (), 3, 3)
    assert len(calls) == 4


def test_a_parameter_that_is_returned_without_gradients_is_timed():
    weight = torch.nn.Parameter(torch.ones(2))
    with torch.no_grad():
        assert fastest_us([lambda x: (x, weight)], [weight], (), 1, 1)[0] > 0
