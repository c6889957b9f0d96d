"""What the exact passes made of a graph races the graph as it was written."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

import loka_compile as loka
from examples.apart import APART
from loka_compile.dispatch.pin import pins
from loka_compile.spec.options import Options
from loka_compile.spec.target import TARGETS
from loka_compile.trial import race as race_module
from loka_compile.trial.laps import Times
from loka_compile.trial.race import Raced, simplified_or_written, unknown
from tests.trial.racing import forget, plan_of, sleeping


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
        monkeypatch.setattr(sys.modules["loka_compile.compilation"], "floor_of", lambda *graph: unknown)
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
