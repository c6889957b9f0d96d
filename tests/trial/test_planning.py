"""Settling a plan: from where it comes, a given one to the letter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import loka_compile as loka
from loka_compile.spec.options import Options
from loka_compile.spec.plan import PlanError
from loka_compile.trial.budget import Trial, output_error
from loka_compile.trial.planning import Bench, contenders, read, settle
from tests.dispatch.made_up import MLP, plan_of

NO_GRAPH = Bench(Trial(None, []), None)
"""Nothing of a graph is asked where a plan is given for any batch."""


@pytest.fixture(scope="module")
def profiled():
    torch.manual_seed(0)
    model, x = MLP(), torch.randn(64, 32)
    with loka.probe(model) as probe, torch.no_grad():
        model(x)
    return model, x, probe.profile


def test_a_graph_for_any_batch_runs_on_the_sizes_at_hand(fresh_dynamo, op_by_op):
    """Sizes reach the backend as symbols; operators that make tensors of them want numbers."""
    model, x = MLP(), torch.randn(24, 32)

    def offset(x):
        return model(x) + torch.arange(x.shape[0])[:, None]

    options = {"min_speedup": 0, "measure_calls": 0, "recipes": ("int8_rowwise",)}
    compiled = torch.compile(offset, backend="loka", dynamic=True, options=options)
    with torch.no_grad():
        assert output_error([compiled(x)], [offset(x)]) < 0.05
    assert loka.plan(compiled).lowered


# ---------------------------------------------------------------- where a plan comes from


def test_a_given_plan_is_followed_to_the_letter(plan_for, fresh_dynamo, op_by_op):
    model, x = MLP(), torch.randn(8, 32)
    plan = plan_for("fp8_tensorwise", model, x, only=lambda site: site.fqn != "second")
    options = {"max_output_error": 0.0, "max_mere": 0.0, "min_speedup": 9.0, "recipes": ()}
    compiled = torch.compile(model, backend="loka", options={"plan": plan, **options})
    with torch.no_grad():
        assert output_error([compiled(x)], [model(x)]) > 0.001
    assert loka.plan(compiled) == plan
    (record,) = loka.records(compiled)
    assert list(record.kernels) == ["first#0:output", "third#0:output"]


def test_a_plan_by_path_is_the_plan(tmp_path):
    plan = plan_of(a=0.1)
    plan.save(tmp_path / "plan.json")
    for given in (plan, tmp_path / "plan.json", str(tmp_path / "plan.json")):
        assert settle(read(Options(plan=given)), NO_GRAPH) == [plan]


def test_a_plan_for_another_target_is_an_error():
    plan = replace(plan_of(a=0.1), target="h100")
    assert settle(Options(plan=plan), NO_GRAPH)[0] is plan
    assert settle(Options(plan=plan, target="h100"), NO_GRAPH)[0] is plan
    with pytest.raises(PlanError, match="the plan is for h100, target='b200' was asked for: leave target out"):
        settle(Options(plan=plan, target="b200"), NO_GRAPH)
    with pytest.raises(PlanError, match="the plan is for cpu, target='h100'"):
        settle(Options(plan=plan_of(a=0.1), target="h100"), NO_GRAPH)


def test_without_real_inputs_nothing_is_decided():
    with torch._subclasses.FakeTensorMode():
        x = torch.randn(4, 4)
    (plan,) = settle(Options(), Bench(Trial(None, [x]), None))
    assert plan.decisions == {} and "no real inputs" in plan.origin


def test_what_may_not_be_lowered_is_not_in_any_contender():
    plan, demoted = plan_of(a=0.1, b=0.1), {"a#0:output": "it drifted"}
    (given,) = contenders(plan, Options(plan=plan), demoted)
    assert [d.site.key for d in given.lowered] == ["b#0:output"] and given.decisions[
        "a#0:output"
    ].reason == "it drifted"
    assert contenders(plan, Options(), {}) == [plan]  # made-up errors, no times: nothing else is near


def test_a_profile_by_path(profiled, tmp_path, fresh_dynamo, op_by_op):
    model, x, profile = profiled
    profile.save(tmp_path / "model.profile")
    options = {"profile": tmp_path / "model.profile", "target": "h100", "min_speedup": 0}
    compiled = torch.compile(model, backend="loka", options=options)
    with torch.no_grad():
        compiled(x)
    plan = loka.plan(compiled)
    assert plan.target == "h100" and plan.origin == f"profile {profile.fingerprint[:12]}" and plan.lowered


def test_a_plan_made_from_a_profile_reproduces_itself(profiled, tmp_path, fresh_dynamo, op_by_op):
    model, x, profile = profiled
    first = torch.compile(model, backend="loka", options={"profile": profile, "target": "h100", "min_speedup": 0})
    with torch.no_grad():
        out = first(x)
        loka.plan(first).save(tmp_path / "plan.json")
        second = torch.compile(model, backend="loka", options={"plan": tmp_path / "plan.json"})
        assert torch.equal(second(x), out)
    (one,), (two,) = loka.records(first), loka.records(second)
    assert (one.before, one.after, one.plan.to_json()) == (two.before, two.after, two.plan.to_json())
