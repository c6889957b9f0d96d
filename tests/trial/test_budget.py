"""Trying plans: demotion until the outputs are within the budget, few trials for it, and no trace left."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import nn

import loka_compile as loka
from loka_compile import compat
from loka_compile.spec.decision import Score
from loka_compile.trial.budget import Trial, kept_along_frontier, output_error, within_budget
from tests.dispatch.made_up import FP8, MLP, plan_of, site

INF, NAN = float("inf"), float("nan")


@dataclass
class Sums:
    """A graph whose output is off by the summed errors of the sites that a plan lowers, and how often it was run."""

    names: tuple
    factor: float = 1.0
    runs: list = field(default_factory=list)

    @property
    def sites(self):
        return [site(name) for name in self.names]

    def error(self, plan, rewriter):
        self.runs.append(plan)
        found = (plan.find(each) for each in self.sites)
        return self.factor * sum(d.score.mere for d in found if d is not None and d.lowered)


def graph(*names, factor=1.0):
    return Sums(names, factor)


# ---------------------------------------------------------------- demotion


def test_the_worst_site_goes_first_and_no_more_than_needed():
    plan = plan_of(a=0.01, b=0.04, c=0.02)
    settled = within_budget(plan, graph("a", "b", "c"), 0.035, None)
    assert [d.site.fqn for d in settled.lowered] == ["a", "c"]
    demoted = settled.decisions["b#0:output"]
    assert demoted.reason == "outputs were off by 7.00% (budget 3.50%) and this site makes most noise for what it saves"
    assert demoted.rejected == ((FP8, demoted.reason),)
    assert [d.site.fqn for d in within_budget(plan, graph("a", "b", "c"), 0.015, None).lowered] == ["a"]


def test_noise_is_weighed_against_the_time_it_buys():
    """b is the noisiest and saves the most: a, which saves little, goes first."""
    plan = plan_of(a=0.04, b=0.05)
    slow = {"keep": Score(time_us=10_000.0)}
    keys = {"a#0:output": 9_900.0, "b#0:output": 1_000.0}
    decisions = {
        key: replace(d, scores={**slow, str(FP8): replace(d.score, time_us=keys[key])})
        for key, d in plan.decisions.items()
    }
    settled = within_budget(replace(plan, decisions=decisions), graph("a", "b"), 0.06, None)
    assert [d.site.fqn for d in settled.lowered] == ["b"]


@pytest.mark.parametrize(("budget", "left"), [(INF, 3), (0.071, 3), (0.03, 2), (0.0, 0)])
def test_budgets(budget, left):
    settled = within_budget(plan_of(a=0.01, b=0.04, c=0.02), graph("a", "b", "c"), budget, None)
    assert len(settled.lowered) == left


def test_only_sites_of_this_graph_are_demoted():
    plan = plan_of(here=0.1, elsewhere=0.9)
    settled = within_budget(plan, graph("here"), 0.05, None)
    assert [d.site.fqn for d in settled.lowered] == ["elsewhere"]


def test_an_error_that_no_site_makes_ends_the_search():
    plan = plan_of(a=0.1)
    assert within_budget(plan, graph("a", factor=NAN), 0.05, None).lowered == []
    assert within_budget(plan_of(other=0.5), graph("a"), -1.0, None) == plan_of(other=0.5)


def test_many_sites_take_few_runs_and_none_is_demoted_in_vain():
    """Sites as in a mixture of 44: the point is found by bisection, and it is the first that holds."""
    names = [f"site{i}" for i in range(44)]
    plan = plan_of(**{name: 0.001 * (i + 1) for i, name in enumerate(names)})
    for budget in (0.9, 0.5, 0.05, 0.002, 0.0005):
        trial = graph(*names)
        settled = within_budget(plan, trial, budget, None)
        assert len(trial.runs) <= 1 + math.ceil(math.log2(45))
        assert trial.error(settled, None) <= budget
        least = min((d for d in settled.decisions.values() if not d.lowered), key=lambda d: d.scores[str(FP8)].mere)
        assert trial.error(settled.with_decision(plan.find(least.site)), None) > budget


def test_a_reason_has_an_error_that_was_seen():
    plan = plan_of(a=0.01, b=0.04, c=0.02)
    trial = graph("a", "b", "c")
    settled = within_budget(plan, trial, 0.015, None)
    seen = {f"{Sums(trial.names).error(run, None):.2%}" for run in trial.runs}
    said = {d.reason.split()[4] for d in settled.decisions.values() if not d.lowered}
    assert said and said <= seen


def test_the_frontier_keeps_more_and_more():
    kept = kept_along_frontier(list(plan_of(a=0.01, b=0.04, c=0.02).decisions.values()))
    assert [len(each) for each in kept] == [1, 2, 3]


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


def test_a_graph_is_traced_once_and_rewritten_anew(fresh_dynamo, monkeypatch):
    """Each rewrite starts from the graph as it is."""
    model, x, captures, honest = MLP(), torch.randn(8, 32), [], compat.capture
    monkeypatch.setattr(compat, "capture", lambda *args, **more: captures.append(1) or honest(*args, **more))

    def doubled(graph):
        (output,) = graph.find_nodes(op="output")
        (result,) = output.args[0]
        with graph.inserting_before(output):
            output.args = ((graph.call_function(torch.ops.aten.mul.Tensor, (result, 2.0)),),)

    def backend(gm, inputs):
        trial = Trial(gm, inputs)
        for _ in range(2):
            torch.testing.assert_close(trial.outputs(doubled)[0], 2 * trial.reference[0])
        assert [each.fqn for each in trial.sites] == ["first", "second", "third"]
        return gm.forward

    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend=backend)(x), model(x))
    assert len(captures) == 1


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
        trial = Trial(gm, inputs)
        first, second, _ = (trial.outputs(lambda graph: None) for _ in range(3))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert torch.equal(torch.get_rng_state(), state)
        grads.append(torch.is_grad_enabled())
        for value, old in zip((x, *model.state_dict().values()), before, strict=True):
            assert torch.equal(value, old)
        seen.append(first)
        return gm.forward

    torch.compile(model, backend=backend)(x)
    assert seen and grads == [True, True]


@pytest.mark.parametrize("writes", [False, True])
def test_a_graph_with_a_region_without_gradients_is_run_forward_only(fresh_dynamo, writes):
    """Such a region ends by switching gradients on again: a teacher that follows its student in the forward."""

    class Teacher(nn.Module):
        def __init__(self):
            super().__init__()
            self.student = nn.Linear(32, 16)
            self.register_buffer("teacher", torch.randn(16, 32))

        def forward(self, x):
            with torch.no_grad():
                if writes:
                    self.teacher.mul_(0.9).add_(self.student.weight, alpha=0.1)
                target = x @ self.teacher.T
            return self.student(x), target

    model, x, seen = Teacher(), torch.randn(8, 32), []

    def backend(gm, inputs):
        seen.append(Trial(gm, inputs).reference)
        return gm.forward

    out = torch.compile(model, backend=backend)(x)
    assert torch.is_grad_enabled() and out[0].requires_grad
    for found, wanted in zip(seen[0], (*out, model.teacher) if writes else out, strict=True):
        assert not found.requires_grad
        torch.testing.assert_close(found, wanted)


def test_what_a_graph_writes_into_its_inputs_counts(fresh_dynamo, op_by_op):
    """Keys that go into a cache are outputs like any other."""

    class Keys(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(32, 16)
            self.register_buffer("cache", torch.zeros(8, 16))

        def forward(self, x):
            self.cache.copy_(self.fc(x))

    model, x, given = Keys(), torch.randn(8, 32), {"recipes": ("fp8_tensorwise",), "min_speedup": 0, "measure_calls": 0}
    for budget, lowered in ((INF, 1), (1e-4, 0)):
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="loka", options={**given, "max_output_error": budget})
        with torch.no_grad():
            compiled(x)
        assert len(loka.plan(compiled).lowered) == lowered


# ---------------------------------------------------------------- errors


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
