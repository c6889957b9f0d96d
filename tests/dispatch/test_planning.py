"""Settling a plan: demotion until the outputs are within the budget, no trace left, a given plan to the letter."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import sympy
import torch
from torch import nn

import loka_compile as loka
from loka_compile.dispatch import planning
from loka_compile.dispatch.plan import Candidate, Decision, Plan, PlanError, Score
from loka_compile.dispatch.planning import output_error, read, settle, within_budget
from loka_compile.graph.site import Site
from loka_compile.options import Options

INF, NAN = float("inf"), float("nan")
FP8 = Candidate("fp8_tensorwise", "aten")


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 16)

    def forward(self, x):
        return self.third(self.second(self.first(x).relu()).relu())


def site(name, role="output"):
    return Site(f"{name}#0:{role}", "mm", role, *map(sympy.Integer, (1, 8, 8, 8)), torch.float32, name)


def plan_of(**mere):
    """A plan that lowers each named site, with the error it was scored at."""
    scores = {name: {str(FP8): Score(error, -20 * math.log10(error))} for name, error in mere.items()}
    decisions = [Decision(site(name), FP8, "chosen", scores[name]) for name in mere]
    return Plan("cpu", {decision.site.key: decision for decision in decisions})


@pytest.fixture
def graph(monkeypatch):
    """A graph of the sites `names`, whose output is off by the summed errors of those a plan lowers."""

    def of(*names, factor=1.0):
        state = {}

        def rewriter(plan, _):
            found = (plan.find(site(name)) for name in names)
            state["off"] = factor * sum(d.score.mere for d in found if d is not None and d.lowered)

        def run(gm, inputs, rewrite):
            state["off"] = 0.0
            rewrite(None)
            return [torch.ones(4) + state["off"]]

        monkeypatch.setattr(planning, "run", run)
        gemms = [type("Gemm", (), {"site": site(name)}) for name in names]
        monkeypatch.setattr(planning, "annotate", lambda graph: gemms)
        return rewriter

    return of


# ---------------------------------------------------------------- demotion


def test_the_worst_site_goes_first_and_no_more_than_needed(graph):
    plan = plan_of(a=0.01, b=0.04, c=0.02)
    settled = within_budget(plan, None, [], 0.035, graph("a", "b", "c"))
    assert [d.site.fqn for d in settled.lowered] == ["a", "c"]
    demoted = settled.decisions["b#0:output"]
    assert demoted.reason == "outputs were off by 7.00% (budget 3.50%) and this site makes most noise for what it saves"
    assert demoted.rejected == ((FP8, demoted.reason),)
    assert [d.site.fqn for d in within_budget(plan, None, [], 0.015, graph("a", "b", "c")).lowered] == ["a"]


def test_noise_is_weighed_against_the_time_it_buys(graph):
    """b is the noisiest and saves the most: a, which saves little, goes first."""
    plan = plan_of(a=0.04, b=0.05)
    slow = {"keep": Score(time_us=10_000.0)}
    keys = {"a#0:output": 9_900.0, "b#0:output": 1_000.0}
    decisions = {
        key: replace(d, scores={**slow, str(FP8): replace(d.score, time_us=keys[key])})
        for key, d in plan.decisions.items()
    }
    settled = within_budget(replace(plan, decisions=decisions), None, [], 0.06, graph("a", "b"))
    assert [d.site.fqn for d in settled.lowered] == ["b"]


@pytest.mark.parametrize(("budget", "left"), [(INF, 3), (0.071, 3), (0.03, 2), (0.0, 0)])
def test_budgets(budget, left, graph):
    settled = within_budget(plan_of(a=0.01, b=0.04, c=0.02), None, [], budget, graph("a", "b", "c"))
    assert len(settled.lowered) == left


def test_only_sites_of_this_graph_are_demoted(graph):
    plan = plan_of(here=0.1, elsewhere=0.9)
    settled = within_budget(plan, None, [], 0.05, graph("here"))
    assert [d.site.fqn for d in settled.lowered] == ["elsewhere"]


def test_an_error_that_no_site_makes_ends_the_search(graph):
    plan = plan_of(a=0.1)
    assert within_budget(plan, None, [], 0.05, graph("a", factor=NAN)).lowered == []
    assert within_budget(plan_of(other=0.5), None, [], -1.0, graph("a")) == plan_of(other=0.5)


@pytest.fixture(scope="module")
def profiled():
    torch.manual_seed(0)
    model, x = MLP(), torch.randn(64, 32)
    with loka.probe(model) as probe, torch.no_grad():
        model(x)
    return model, x, probe.profile


def test_demotion_of_a_real_model(profiled, fresh_dynamo, op_by_op):
    model, x, profile = profiled
    given = {"profile": profile, "recipes": ("fp8_tensorwise",), "min_speedup": 0, "max_mere": INF, "min_sqnr_db": 0}
    lowered = {}
    budgets = [INF]
    for budget in budgets:
        compiled = torch.compile(model, backend="loka", options={**given, "max_output_error": budget})
        with torch.no_grad():
            out, reference = compiled(x), model(x)
        error = output_error([out], [reference])
        assert error <= budget
        budgets += [0.9 * error, 0.0] if budget == INF else []
        plan = loka.plan(compiled)
        lowered[budget] = len(plan.lowered)
        worst = [d for d in plan.decisions.values() if "outputs were off by" in d.reason]
        assert len(worst) + len(plan.lowered) == 3
        noise = {key: -known.error("fp8_tensorwise").sqnr_db for key, known in profile.sites.items()}
        assert all(noise[d.site.key] >= noise[kept.site.key] for d in worst for kept in plan.lowered)
    assert [lowered[INF], lowered[0.0]] == [3, 0] and 0 < lowered[budgets[1]] < 3


# ---------------------------------------------------------------- no trace


def test_running_a_graph_leaves_inputs_buffers_and_random_state(fresh_dynamo):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.norm = nn.Linear(32, 16), nn.BatchNorm1d(16)

        def forward(self, x):
            x.add_(1)
            return self.norm(nn.functional.dropout(self.fc(x)))

    model, x = Noisy(), torch.randn(8, 32)
    before = [value.clone() for value in (x, *model.state_dict().values())]
    grads, seen = [torch.is_grad_enabled()], []

    def backend(gm, inputs):
        state = torch.get_rng_state()
        first, second = (planning.run(gm, inputs, lambda graph: None) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert torch.equal(torch.get_rng_state(), state)
        grads.append(torch.is_grad_enabled())
        for value, old in zip((x, *model.state_dict().values()), before, strict=True):
            assert torch.equal(value, old)
        seen.append(first)
        return gm.forward

    torch.compile(model, backend=backend)(x)
    assert seen and grads == [True, True]


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
        assert settle(read(Options(plan=given)), None, [], None) == [plan]


def test_a_plan_for_another_target_is_an_error():
    plan = replace(plan_of(a=0.1), target="h100")
    assert settle(Options(plan=plan), None, [], None)[0] is plan
    assert settle(Options(plan=plan, target="h100"), None, [], None)[0] is plan
    with pytest.raises(PlanError, match="the plan is for h100, target='b200' was asked for: leave target out"):
        settle(Options(plan=plan, target="b200"), None, [], None)
    with pytest.raises(PlanError, match="the plan is for cpu, target='h100'"):
        settle(Options(plan=plan_of(a=0.1), target="h100"), None, [], None)


def test_without_real_inputs_nothing_is_decided():
    with torch._subclasses.FakeTensorMode():
        x = torch.randn(4, 4)
    (plan,) = settle(Options(), None, [x], None)
    assert plan.decisions == {} and "no real inputs" in plan.origin


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


# ---------------------------------------------------------------- the error


@pytest.mark.parametrize(
    ("out", "reference", "error"),
    [
        ([], [], 0.0),
        ([[1.0, 2.0]], [[1.0, 2.0]], 0.0),
        ([[1.1, -1.1]], [[1.0, -1.0]], 0.1),
        ([[1.0], [3.0]], [[1.0], [2.0]], 0.5),  # the worst output counts
        ([[NAN, 1.0]], [[1.0, 1.0]], INF),
        ([[INF, 1.0]], [[1.0, 1.0]], INF),
        ([[1.0, 1.0]], [[NAN, 1.0]], 0.0),  # nothing to compare with
        ([[NAN]], [[NAN]], 0.0),
        ([[0.0]], [[0.0]], 0.0),
        ([[1e38]], [[-1e38]], 2.0),
    ],
)
def test_output_error(out, reference, error):
    made, wanted = ([torch.tensor(value) for value in values] for values in (out, reference))
    assert output_error(made, wanted) == pytest.approx(error, abs=1e-6)


def test_output_error_looks_at_floats_alone():
    assert output_error([torch.tensor([1]), None, 3, torch.empty(0)], [torch.tensor([2]), None, 4, torch.empty(0)]) == 0
    assert output_error([torch.tensor([0.1])], [torch.tensor([0.0])]) > 1e6
