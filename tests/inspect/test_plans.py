"""plan and plans: one plan to save where the graphs agree, else the one that is asked for; never silently another's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import loka_compile as loka
from loka_compile.inspect import plans as module
from loka_compile.spec.decision import KEPT, Candidate, Range
from loka_compile.spec.plan import Plan

BF16 = Candidate("bf16", "aten")


def test_the_plan_comes_back(case):
    assert loka.plan(case.compiled).to_json() == case.plan.to_json()


def test_a_plan_of_graphs_that_share_a_key_keeps_both(case, monkeypatch):
    """After a graph break the second graph's GEMM may have the first one's name: it is filed under key@source."""
    first = loka.records(case.compiled)[0]
    sites = tuple(replace(site, source="elsewhere.py:1") for site in first.sites)
    decisions = {site.key: replace(case.plan.decisions[site.key], site=site) for site in sites}
    second = replace(first, sites=sites, plan=replace(case.plan, decisions=decisions))
    monkeypatch.setattr(module, "records", lambda compiled: [first, second])
    both = loka.plan(case.compiled)
    for site in (*first.sites, *sites):
        assert both.find(site).site.source == site.source
    assert set(both.decisions) > {"a#0:output", "a#0:output@elsewhere.py:1"}


def test_a_decision_of_the_graph_that_runs_it_goes_before_another_graphs(case, monkeypatch):
    """A site demoted in its own graph stays demoted, though the plan of another graph still lowers it."""
    first = loka.records(case.compiled)[0]
    demoted = first.plan.with_decision(first.plan.decisions["a#0:output"].demoted("outputs were off"))
    monkeypatch.setattr(module, "records", lambda _: [replace(first, plan=demoted), replace(first, sites=())])
    assert not loka.plan(case.compiled).decisions["a#0:output"].lowered


@pytest.fixture
def two(case, monkeypatch):
    """two(first, second): the plan of a model with two graphs of the same GEMMs, which run these plans."""

    def both(first: Plan, second: Plan, **asked):
        record = replace(loka.records(case.compiled)[0], inputs="x (8, 32)")
        known = [replace(record, plan=first), replace(record, plan=second, name="graph_1", inputs="x (2, 32)")]
        monkeypatch.setattr(module, "records", lambda _: known)
        return loka.plan(None, **asked)

    return both


def lost(plan: Plan) -> Plan:
    """As after a race that the planned graph lost."""
    return replace(plan.with_decision(plan.decisions["a#0:output"].lost("slower here")), raced="")


def test_graphs_that_decide_a_gemm_differently_have_no_one_plan(two, case) -> None:
    with pytest.raises(ValueError, match="different plans") as caught:
        two(case.plan, lost(case.plan))
    text = str(caught.value)
    assert "graph_0 (inference of x (8, 32)): 1 of 3 sites lowered" in text
    assert "graph_1 (inference of x (2, 32)): 0 of 3 sites lowered" in text
    assert "a#0:output (int8_rowwise/aten in graph_0; keep in graph_1)" in text and "graph='graph_0'" in text


@pytest.mark.parametrize(
    "graph, recipe", [("graph_0", "int8_rowwise"), (0, "int8_rowwise"), ("graph_1", "keep"), (1, "keep")]
)
def test_the_one_that_is_asked_for(two, case, graph, recipe) -> None:
    assert two(case.plan, lost(case.plan), graph=graph).decisions["a#0:output"].chosen.recipe == recipe
    assert [plan.decisions["a#0:output"].chosen.recipe for plan in loka.plans(None).values()] == [
        "int8_rowwise",
        "keep",
    ]


def test_a_graph_that_is_not_there(two, case) -> None:
    with pytest.raises(ValueError, match=r"got 'graph_7'\n  graph_0 \(inference of x"):
        two(case.plan, case.plan, graph="graph_7")


def test_graphs_that_agree_have_one_with_the_first_ones_numbers(two, case) -> None:
    first, second = replace(case.plan, raced="2x"), replace(case.plan, raced="3x")
    timed = second.decisions["a#0:output"]
    both = two(first, second.with_decision(replace(timed, reason="timed at another batch")))
    assert both.decisions["a#0:output"].reason == case.plan.decisions["a#0:output"].reason
    assert both.raced == "graph_0: 2x; graph_1: 3x"


def test_ranges_of_the_batch_are_one_choice(two, case) -> None:
    """Each graph's choice is that of its own batch; the ranges say both."""
    decision = case.plan.decisions["a#0:output"]
    ranges = (Range(0, KEPT), Range(100, decision.chosen))
    many = case.plan.with_decision(replace(decision, ranges=ranges))
    few = case.plan.with_decision(replace(decision, ranges=ranges, chosen=KEPT))
    assert two(many, few).decisions["a#0:output"].ranges == ranges
    fewer = replace(decision, ranges=(Range(0, KEPT), Range(200, decision.chosen)))
    with pytest.raises(ValueError, match="keep from 0 rows on, int8_rowwise/aten from 200 rows on in graph_1"):
        two(many, case.plan.with_decision(fewer))


def test_a_graph_left_to_inductor_has_no_say(two, case) -> None:
    nothing = Plan("cpu", {}, origin="left to Inductor")
    pinned = replace(case.plan, pins={"hardware": "this"})
    both = two(nothing, pinned)
    assert both.decisions["a#0:output"].lowered and both.pins == pinned.pins
    assert not two(nothing, nothing).lowered


@pytest.mark.usefixtures("fresh_dynamo", "op_by_op")
def test_a_call_with_a_smaller_batch_does_not_change_what_is_saved(monkeypatch, tmp_path) -> None:
    """The planned graph loses its race at the smaller batch only."""
    import importlib

    compilation = importlib.import_module("loka_compile.compilation")
    raced = compilation.never_slower

    def slower_for_few(plans, build, inputs, *rest):
        few = any(value.shape[0] < 64 for value in inputs if not isinstance(value, nn.Parameter))
        return raced([lost_all(plans[0]) if few else plans[0]], build, inputs, *rest)

    def lost_all(plan: Plan) -> Plan:
        for decision in plan.lowered:
            plan = plan.with_decision(decision.lost("slower here"))
        return plan

    monkeypatch.setattr(compilation, "never_slower", slower_for_few)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16)).eval()
    options = {"measure_calls": 0, "min_speedup": 0, "recipes": ("int8_rowwise",), "max_output_error": 1.0}
    compiled = torch.compile(model, backend="loka", options=options, dynamic=False)
    with torch.no_grad():
        compiled(torch.randn(256, 32))
        loka.plan(compiled).save(tmp_path / "plan.json")
        compiled(torch.randn(8, 32))
    with pytest.raises(ValueError, match=r"graph_0 \(inference of \w+ \(256, 32\)\): 2 of 2 sites lowered"):
        loka.plan(compiled)
    assert loka.plan(compiled, graph=0).to_json() == (tmp_path / "plan.json").read_text()
    assert not loka.plan(compiled, graph=1).lowered
