"""Never slower: the planned graph races the unplanned one; the loser goes, the verdict stays."""

from __future__ import annotations

import importlib
import sys
import time
from dataclasses import replace

import pytest
import sympy
import torch
from torch import nn

import loka_compile as loka
from examples.apart import APART
from loka_compile.dispatch import kept_times
from loka_compile.dispatch.pin import pins
from loka_compile.spec.decision import Candidate, Decision, Score
from loka_compile.spec.options import Options
from loka_compile.spec.plan import Plan
from loka_compile.spec.processor import processor
from loka_compile.spec.site import Site
from loka_compile.spec.target import TARGETS
from loka_compile.trial import race as race_module
from loka_compile.trial.laps import MAX_ROUNDS, Times, fastest_us
from loka_compile.trial.race import MARGIN, QUIET, Raced, _margin, never_slower, simplified_or_written, unknown

INT8, UINT8 = Candidate("int8_rowwise", "aten"), Candidate("uint8_affine", "aten")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOKA_CACHE_DIR", str(tmp_path))
    forget()
    yield tmp_path
    forget()


def forget():
    kept_times._file.cache_clear()
    kept_times.times.cache_clear()


def site(name):
    return Site(f"{name}#0:output", "mm", "output", *map(sympy.Integer, (1, 8, 8, 8)), torch.float32, name)


def plan_of(target="cpu", *names):
    decisions = [Decision(site(name), INT8, "fast", {str(INT8): Score()}) for name in names or ("a", "b")]
    return Plan(target, {decision.site.key: decision for decision in decisions})


def timed_plan(before, after):
    """Of two sites that take so many microseconds each, before and lowered."""
    scores = {"keep": Score(time_us=before), str(INT8): Score(time_us=after)}
    decisions = {key: replace(d, scores=scores) for key, d in plan_of().decisions.items()}
    return replace(plan_of(), decisions=decisions)


class Builder:
    """Builds graphs that take as long as they are told, and remembers what it built."""

    def __init__(self, planned, unplanned):
        self.seconds = {True: planned, False: unplanned}
        self.built = []

    def __call__(self, plan):
        self.built.append(plan)
        seconds = self.seconds[bool(plan.lowered)]

        def call(x):
            time.sleep(seconds)
            return (x,)

        return call, [plan]


def race(plan, builder, x=None, device="cpu", options=None, floor=unknown, watched=False):
    plans, inputs = plan if isinstance(plan, list) else [plan], [torch.ones(2) if x is None else x]
    raced = never_slower(plans, builder, inputs, options or Options(), device, (), floor, watched)
    return raced.plan, raced.built


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


def test_a_graph_whose_products_alone_take_longer_is_not_compiled(cache):
    for _ in range(2):  # the second time from the verdict on disk
        builder = Builder(0.002, 0.006)
        plan, (_, artifacts) = race(plan_of(), builder, floor=lambda: 6_000.0)
        assert [len(each.lowered) for each in builder.built] == [2] and artifacts[0].lowered
        assert plan.raced.startswith("at least ")
        assert plan.raced.endswith("library calls alone take as long, measured here")
        assert 1.5 < float(plan.raced.split()[2].partition("x")[0]) < 3.1
        forget()


def test_a_plan_that_saves_too_little_to_tell_is_not_compiled(cache):
    for _ in range(2):  # the second time from the verdict on disk
        builder = Builder(0.001, 0.010)
        plan, (_, artifacts) = race(timed_plan(1_000.0, 950.0), builder, floor=lambda: 2_000.0)
        assert [len(each.lowered) for each in builder.built] == [0] and not artifacts[0].lowered and not plan.lowered
        for decision in plan.decisions.values():
            saves = float(decision.reason.removeprefix("all that is lowered saves ").partition("%")[0])
            assert 0.5 < saves <= 1.0 and decision.reason.endswith("too little for a race to tell")
        forget()


@pytest.mark.parametrize("before, after, floor_us", [(1_000.0, 800.0, 2_000.0), (1_000.0, 950.0, 300.0)])
def test_a_plan_that_may_save_more_races(cache, before, after, floor_us):
    """A twenty-fifth of the graph's time, found when that was run; or a third of what it takes at least."""
    builder = Builder(0.002, 0.010)
    plan, (_, artifacts) = race(timed_plan(before, after), builder, floor=lambda: floor_us)
    assert len(builder.built) == 2 and plan.lowered and artifacts[0].lowered
    assert plan.raced.endswith("x the unplanned graph's speed, measured here")


@pytest.mark.parametrize("floor_us", [0.0, 1_000.0, 2_200.0])
def test_a_floor_that_is_not_far_below_decides_nothing(cache, floor_us):
    builder = Builder(0.002, 0.006)
    plan, _ = race(plan_of(), builder, floor=lambda: floor_us)
    assert len(builder.built) == 2 and plan.raced.endswith("x the unplanned graph's speed, measured here")
    assert "at least" not in plan.raced


def test_finalists_race_without_the_unplanned_graph_too(cache):
    plan = plan_of()
    finalist = replace(plan, decisions={k: replace(d, chosen=UINT8) for k, d in plan.decisions.items()})
    built = []

    def build(of):
        built.append(of)
        return sleeping({INT8: 0.004, UINT8: 0.002}.get(of.decisions["a#0:output"].chosen, 0.009))

    won, (_, artifacts) = race([plan, finalist], build, floor=lambda: 9_000.0)
    assert won.decisions == finalist.decisions and artifacts == [0.002] and built == [plan, finalist]
    assert "at least" in won.raced and "that of the plan made from single times" in won.raced


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


# ---------------------------------------------------------------- what the exact passes made of it


def sleeping(seconds):
    def call(x):
        time.sleep(seconds)
        return (x,)

    return call, [seconds]


def race_simplified(simplified, written, plan=None, code="a", options=None, floor=unknown):
    builds = []

    def build(plan):
        builds.append(plan)
        return sleeping(written)

    given = [torch.ones(2)], options or Options(), "cpu", (), floor
    raced, ratio = simplified_or_written(Raced(plan or plan_of(), sleeping(simplified)), build, code, *given)
    return raced.plan, raced.built, ratio, builds


def test_a_simplified_graph_that_is_faster_stays_and_says_so(cache):
    plan, (_, artifacts), ratio, builds = race_simplified(0.002, 0.006)
    assert artifacts == [0.002] and ratio > 1.5 and len(plan.lowered) == 2 and not builds[0].lowered
    assert plan.raced == f"simplified, {ratio:.2f}x the speed of the graph as it was written, measured here"
    *_, builds = race_simplified(0.006, 0.002)  # the verdict is known
    assert not builds
    assert len(race_simplified(0.002, 0.006, code="another")[-1]) == 1


def test_a_graph_as_written_whose_products_alone_take_longer_is_not_compiled(cache):
    for _ in range(2):
        plan, _, ratio, builds = race_simplified(0.002, 0.006, floor=lambda: 6_000.0)
        assert not builds and 1.5 < ratio < 3.1
        assert plan.raced == (
            f"simplified, at least {ratio:.2f}x the speed of the graph as it was written, whose library calls alone "
            "take as long, measured here"
        )
        forget()
    assert len(race_simplified(0.002, 0.006, code="b", floor=lambda: 2_200.0)[-1]) == 1


def test_a_simplified_graph_that_is_slower_goes(cache):
    plan, (_, artifacts), ratio, builds = race_simplified(0.006, 0.002)
    assert artifacts == [0.002] and ratio < 1 and not plan.lowered and len(builds) == 1
    plan, (_, artifacts), ratio, builds = race_simplified(0.006, 0.002)
    assert artifacts == [0.002] and len(builds) == 1  # known: compiled, not raced


@pytest.mark.parametrize("options", [Options(race=False), Options(min_speedup=0)])
def test_simplified_graphs_that_do_not_race(cache, options):
    _, (_, artifacts), ratio, builds = race_simplified(0.006, 0.002, options=options)
    assert artifacts == [0.006] and ratio == float("inf") and not builds


class Ranker(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower, self.top = nn.Sequential(nn.Linear(64, 2048), nn.ReLU(), nn.Linear(2048, 8)), nn.Linear(16, 1)

    def forward(self, user, item):
        return self.top(torch.cat([self.tower(user.expand(len(item), -1)), item], -1))


@pytest.mark.parametrize("wins", [True, False])
def test_the_exact_passes_race_the_graph_as_it_was_written(cache, fresh_dynamo, op_by_op, monkeypatch, wins):
    if not wins:
        monkeypatch.setattr(race_module, "fastest_us", lambda *built: Times([[2.0, 1.0]] * 2))
        monkeypatch.setattr(sys.modules["loka_compile.backend"], "floor_of", lambda *graph: unknown)
    torch.manual_seed(0)
    model, user, item = Ranker(), torch.randn(1, 64), torch.randn(999, 8)
    compiled = torch.compile(model, backend="loka", options={"recipes": ()})
    with torch.no_grad():
        torch.testing.assert_close(compiled(user, item), model(user, item), rtol=1e-4, atol=1e-5)
    text = " ".join(str(loka.explain(compiled)).split())
    record = loka.records(compiled)[0]
    if wins:
        assert "hoist: linear before its input is repeated: tower.0, tower.2" in text
        assert "simplified," in record.plan.raced
        assert "[1, 2048]" in record.before and "[999, 2048]" not in record.before
    else:
        assert "tower.0 not: linear before its input is repeated: what it did was slower than the graph" in text
        assert "[999, 2048]" in record.before

    assert "hoist" in {stage.name for stage in record.stages}


@pytest.mark.slow
def test_graphs_race_in_training_with_generated_code(cache, fresh_dynamo, monkeypatch):
    """Both backwards are compiled during the race, within one compilation."""
    races, run = [], race_module.fastest_us
    monkeypatch.setattr(race_module, "fastest_us", lambda *args: races.append(run(*args)) or races[-1])
    y, x = torch.randn(64, 8, requires_grad=True), torch.randn(8, 64, 16)
    fn = lambda x, y: x @ x.mT @ y  # noqa: E731
    compiled = torch.compile(fn, backend="loka", options={"measure_calls": 0})
    compiled(x, y).sum().backward()
    own, y.grad = y.grad, None
    fn(x, y).sum().backward()
    torch.testing.assert_close(own, y.grad, rtol=1e-4, atol=1e-3)
    assert races


def test_a_pass_that_is_off_hoists_nothing(fresh_dynamo, op_by_op):
    compiled = torch.compile(Ranker(), backend="loka", options={"recipes": (), "passes": {"hoist": False}})
    with torch.no_grad():
        compiled(torch.randn(1, 64), torch.randn(9, 8))
    assert "hoist" not in str(loka.explain(compiled))


def test_a_plan_that_knows_the_graph_as_written_keeps_it_so(fresh_dynamo, op_by_op, plan_for, monkeypatch):
    """A split linear is another GEMM than the one that the plan decided about; a narrower batch is not."""
    rates = importlib.import_module("loka_compile.passes.simplify._rates")
    monkeypatch.setattr(rates, "CPU", rates.Rates(flops=1.0, bandwidth=1e30, launch=0.0))
    model, user, item = Ranker(), torch.randn(1, 64), torch.randn(99, 8)
    with torch.no_grad():
        plan = plan_for("bf16", model, user, item)
        for given, split in ((plan, False), (None, True)):
            options = {"plan": given} if given else {"recipes": ()}
            compiled = torch.compile(model, backend="loka", options=options, **APART)
            torch.testing.assert_close(compiled(user, item), model(user, item), rtol=0.05, atol=0.05)
            text = " ".join(str(loka.explain(compiled)).split())
            assert ("linear, split: columns 0-7" in text) and (("as the plan given lowers" in text) != split)
            assert len(loka.plan(compiled).lowered) == (3 if given else 0)


def test_a_pinned_plan_keeps_the_graph_though_it_lowers_nothing(fresh_dynamo, op_by_op, plan_for, monkeypatch):
    """A GEMM that it does not know would have the plan refused."""
    rates = importlib.import_module("loka_compile.passes.simplify._rates")
    monkeypatch.setattr(rates, "CPU", rates.Rates(flops=1.0, bandwidth=1e30, launch=0.0))
    model, user, item = Ranker(), torch.randn(1, 64), torch.randn(99, 8)
    with torch.no_grad():
        plan = plan_for("bf16", model, user, item, only=lambda site: False)
        pinned = replace(plan, pins=pins(TARGETS["cpu"]))
        compiled = torch.compile(model, backend="loka", options={"plan": pinned})
        torch.testing.assert_close(compiled(user, item), model(user, item))
    assert "as the plan given knows" in " ".join(str(loka.explain(compiled)).split())


class Tower(nn.Module):
    """A user's tower, and heads of one tensor."""

    def __init__(self):
        super().__init__()
        self.tower, self.heads = nn.Linear(8, 8), nn.ModuleList(nn.Linear(8, 8) for _ in range(6))

    def forward(self, user, items):
        x = self.tower(user.expand(len(items), -1)) + items
        return tuple(head(x) for head in self.heads)


def test_a_profile_keeps_the_gemms_that_it_knows_and_no_more(fresh_dynamo, op_by_op):
    """Heads joined would be a GEMM that the profile has never seen; a tower over fewer rows is one it knows."""
    model, args = Tower(), (torch.randn(1, 8), torch.randn(99, 8))
    with torch.no_grad(), loka.probe(model) as probe:
        model(*args)
    for profile, joined in ((probe.profile, False), (None, True)):
        torch._dynamo.reset()
        options = {"profile": profile, "target": "h100", "measure_calls": 0}
        compiled = torch.compile(model, backend="loka", options=options)
        with torch.no_grad():
            torch.testing.assert_close(compiled(*args), model(*args), rtol=0.05, atol=0.05)
        text = " ".join(str(loka.explain(compiled)).split())
        assert "hoist: linear before its input is repeated: tower" in text
        assert ("one linear of 6: undone, as the profile given knows GEMMs" in text) != joined
        assert ("merge: one linear of 6: heads.0" in text) == joined
