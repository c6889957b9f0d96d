"""Never slower: the planned graph races the unplanned one; the loser goes, the verdict stays."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from torch import nn

import loka_compile as loka
from examples.apart import APART
from loka_compile.spec.decision import Score
from loka_compile.spec.options import Options
from loka_compile.spec.plan import Plan
from loka_compile.spec.processor import processor
from loka_compile.trial import race as race_module
from loka_compile.trial.laps import MAX_ROUNDS, Times, fastest_us
from loka_compile.trial.race import MARGIN, QUIET, _margin, never_slower
from tests.trial.racing import INT8, UINT8, Builder, forget, plan_of, race


def test_a_faster_plan_stays_and_says_by_how_much(cache):
    plan, (_, artifacts) = race(plan_of(), Builder(0.002, 0.006))
    assert len(plan.lowered) == 2 and artifacts[0].lowered
    ratio = float(plan.raced.partition("x")[0])
    assert 1.5 < ratio < 6 and plan.raced.endswith("x the unplanned graph's speed, measured here")


def test_a_slower_plan_goes_and_every_site_says_why(cache):
    builder = Builder(0.006, 0.002)
    plan, (_, artifacts) = race(plan_of(), builder)
    assert plan.lowered == [] and not artifacts[0].lowered and len(builder.built) == 2
    for decision in plan.decisions.values():
        assert decision.reason.startswith("the planned graph was slower than the unplanned one: 0.")
        assert decision.rejected == ((INT8, decision.reason),)


@pytest.mark.parametrize(("unplanned", "lowered"), [(1.03, 0), (1.07, 2)])
def test_low_precision_has_to_win_more_than_nothing(cache, monkeypatch, unplanned, lowered):
    monkeypatch.setattr(race_module, "fastest_us", lambda *built: Times([[1000.0, 1000.0 * unplanned]] * 2))
    plan, _ = race(plan_of(), Builder(0.0, 0.0))
    assert len(plan.lowered) == lowered
    if not lowered:
        for decision in plan.decisions.values():
            assert decision.reason.startswith(f"the planned graph was hardly faster: {unplanned}x")


def test_what_watching_takes_of_a_call_counts(cache, monkeypatch):
    """Online: what is lowered is watched, what is kept is not."""
    monkeypatch.setattr(race_module, "WATCHED_US", 50_000.0)
    assert not race(plan_of(), Builder(0.002, 0.006), watched=True)[0].lowered
    assert race(plan_of(), Builder(0.002, 0.006))[0].lowered  # a race of its own
    plan, (_, artifacts) = race(plan_of("cpu", "a"), Builder(0.002, 0.02), watched=True, floor=lambda: 2e4)
    assert not plan.lowered and not artifacts[0].lowered  # the unplanned graph was compiled for it


def test_a_finalist_that_is_faster_wins_and_says_by_how_much(cache):
    plan = plan_of()
    finalist = replace(plan, decisions={k: replace(d, chosen=UINT8) for k, d in plan.decisions.items()})

    def build(of):
        built.append(of)
        seconds = {INT8: 0.006, UINT8: 0.003}.get(of.decisions["a#0:output"].chosen, 0.009)

        def call(x):
            time.sleep(seconds)
            return (x,)

        return call, [of]

    for known in (False, True):  # the second time from the verdict on disk: only the winner is built
        built = []
        won, (_, artifacts) = race([plan, finalist], build)
        assert won.decisions == finalist.decisions and artifacts[0].decisions == finalist.decisions
        assert len(built) == (1 if known else 3)
        over_unplanned, over_plan = (float(each.partition("x")[0]) for each in won.raced.split(", ")[:2])
        assert over_unplanned > over_plan > 1.3 and "that of the plan made from single times" in won.raced
        forget()
    won, _ = race([finalist, plan], build)
    assert won.decisions == finalist.decisions and "single times" not in won.raced


def test_a_finalist_of_more_noise_has_to_win_by_more():
    def noisy(db):
        decisions = {k: replace(d, scores={str(INT8): Score(sqnr_db=db)}) for k, d in plan_of().decisions.items()}
        return replace(plan_of(), decisions=decisions)

    assert _margin(noisy(40), noisy(40)) == _margin(noisy(40), noisy(50)) == MARGIN
    assert MARGIN < _margin(noisy(40), noisy(39)) < _margin(noisy(40), noisy(20)) == MARGIN + QUIET


@pytest.mark.parametrize("seconds", [(0.002, 0.006), (0.006, 0.002)])
def test_a_graph_is_raced_once_for_all_processes(cache, seconds):
    first, _ = race(plan_of(), Builder(*seconds))
    forget()  # another process
    builder = Builder(*seconds)
    second, _ = race(plan_of(), builder)
    assert first == second
    assert builder.built[-1].lowered == second.lowered and all(isinstance(p, Plan) for p in builder.built)
    assert len(builder.built) == 1


LONGEST = 4 * MAX_ROUNDS + 1
"""Calls of a graph, the first among them, where other work is in the way of the tests."""


@pytest.mark.parametrize("others, least, most", [([0.03], 6, 6), ([0.0021], 7, LONGEST), ([], 6, LONGEST)])
def test_a_clear_race_is_short_and_a_close_one_is_not(others, least, most, cache):
    calls = []
    graphs = [lambda x: calls.append(1) or time.sleep(0.002), *(lambda x, s=s: time.sleep(s) for s in others)]
    us = fastest_us([lambda *args, graph=graph: graph(*args) or () for graph in graphs], [None], ())
    assert least <= len(calls) <= most and all(each > 1_900 for each in us)


def test_another_size_is_another_race(cache):
    race(plan_of(), Builder(0.002, 0.006))
    forget()
    builder = Builder(0.006, 0.002)
    assert race(plan_of(), builder, torch.ones(3))[0].lowered == []


@pytest.mark.parametrize(
    "plan, options, device",
    [
        (plan_of(), {"min_speedup": 0}, "cpu"),
        (plan_of(), {"race": False}, "cpu"),
        (plan_of(), {"plan": plan_of()}, "cpu"),
        (plan_of("h100"), {}, "cpu"),
        (plan_of(), {}, "cuda"),
        (Plan("cpu", {}), {}, "cpu"),
    ],
    ids=["speed is no matter", "switched off", "given", "other hardware", "other device", "nothing lowered"],
)
def test_what_does_not_race(cache, plan, options, device):
    builder = Builder(0.0, 0.0)
    assert race(plan, builder, device=device, options=Options(**options))[0] is plan
    assert builder.built == [plan]


def test_a_race_leaves_inputs_and_random_state(cache):
    def build(plan):
        return lambda x: (x.add_(torch.rand(())),), []

    x, state = torch.ones(2), torch.get_rng_state()
    race(plan_of(), build, x)
    assert torch.equal(x, torch.ones(2)) and torch.equal(torch.get_rng_state(), state)


def test_a_race_copies_anew_what_a_graph_writes(cache):
    """A parameter, and in training an input that the backward goes through."""

    def build(plan):
        return lambda x, y: (x.add_(1) * y.mul_(2),), []

    x, y = nn.Parameter(torch.zeros(2), requires_grad=False), torch.ones(2, requires_grad=True) * 1
    plan = never_slower([plan_of()], build, [x, y], Options(), "cpu", written=[0, 1]).plan
    assert plan.raced or not plan.lowered
    assert torch.equal(x, torch.zeros(2)) and torch.equal(y, torch.ones(2))


def test_views_that_a_graph_writes_race_on_views_of_one_copy(cache):
    both, seen = torch.ones(2, 2).t(), []

    def build(plan):
        def call(column, all_of_it):
            column.add_(1)
            seen.append((column.stride(), all_of_it.stride(), all_of_it.sum().item()))
            return ()

        return call, []

    plan = never_slower([plan_of()], build, [both[0], both], Options(), "cpu", written=[0]).plan
    assert plan.raced or not plan.lowered
    assert len(seen) >= 12 and set(seen) == {((2,), (1, 2), 6.0)}
    assert torch.equal(both, torch.ones(2, 2))


def test_a_race_in_training_runs_the_backward_and_keeps_no_gradient(cache):
    weight, backwards = nn.Parameter(torch.ones(2)), []
    weight.register_hook(backwards.append)

    def build(plan):
        return lambda w: (w * 2,), []

    race(plan_of(), build, weight)
    assert len(backwards) >= 12 and weight.grad is None


@pytest.fixture
def one_thread():
    """Threads that wait for each other on a busy machine can make a plain product of microseconds take milliseconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_race_of_real_graphs(cache, fresh_dynamo, op_by_op, one_thread, monkeypatch):
    """Op by op a quantized product is slower than a plain one: that is what the race is for."""
    monkeypatch.setattr(race_module, "saves_us", lambda plan: float("inf"))  # by single times it is clear before
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)), torch.randn(8, 32)
    with loka.probe(model) as probe, torch.no_grad():
        model(x)
    options = {"profile": probe.profile, "recipes": ("int8_rowwise",), "min_speedup": 1e-6}
    recipes = ("int8_rowwise",) if processor().fast_int_mm else ("int8_rowwise_w7",)
    compiled = torch.compile(model, backend="loka", options={**options, "recipes": recipes})
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
    plan = loka.plan(compiled)
    assert plan.lowered == [] and all("slower than the unplanned" in d.reason for d in plan.decisions.values())

    for _ in range(2):  # the second knows the verdict
        trained = torch.compile(model, backend="loka", options={**options, "race": False}, **APART)
        trained(x).sum().backward()
    assert len(loka.plan(trained).lowered) == (2 if processor().fast_int_mm else 0)  # no other is fast in training
