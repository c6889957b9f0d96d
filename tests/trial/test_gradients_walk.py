"""Steps down until the gradients are within their budget, and how far off gradients are said to be."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import pytest
import sympy
import torch

from loka_compile.spec.decision import KEPT, Candidate, Decision, Range, Score
from loka_compile.spec.plan import Plan
from loka_compile.spec.site import Site
from loka_compile.trial.gradients import gradient_error, gradients_within_budget
from tests.trial.test_gradients import BF16, INF, INT8, NAN


def step_with(**effects):
    """A step whose gradients are off by the root of the summed squares of effect times noise of each lowered site."""

    class Step:
        sites: ClassVar = [decision_of(name).site for name in effects]
        asked = 0

        def error(self, plan, rewriter):
            self.asked += 1
            lowered = [d for d in map(plan.find, self.sites) if d.lowered]
            return math.sqrt(sum(effects[d.site.fqn] ** 2 * d.score.noise for d in lowered))

    return Step()


def decision_of(name):
    role = "output" if name.startswith("forward") else "grad_weight"
    site = Site(f"{name}#0:{role}", "mm", role, *map(sympy.Integer, (1, 8, 8, 8)), torch.float32, name)
    timed = {INT8: Score(0.02, 40.0, 0.01, 10.0), BF16: Score(0.01, 60.0, 0.005, 20.0)}
    scores = {"keep": Score(time_us=100.0), **{str(candidate): score for candidate, score in timed.items()}}
    return Decision(site, INT8, "fastest", scores, ((BF16, "slower"), (Candidate("fp16", "aten"), "never timed")))


def test_where_the_choice_depends_on_the_batch_only_keeping_is_left():
    plan = plan_of("forward")
    ranges = (Range(0, BF16), Range(64, INT8))
    plan = plan.with_decision(replace(plan.decisions["forward#0:output"], ranges=ranges))
    decision = gradients_within_budget(plan, step_with(forward=10.0), 0.05, None).decisions["forward#0:output"]
    assert decision.chosen == KEPT and not decision.ranges


def plan_of(*names):
    return Plan("cpu", {d.site.key: d for d in map(decision_of, names)})


def test_steps_down_are_taken_where_they_help():
    """The forward's noise is seen ten times as much: its sites step down to 16 bits, the backward's stay."""
    names = ("forward_a", "forward_b", "backward_a", "backward_b")
    step = step_with(forward_a=10.0, forward_b=10.0, backward_a=1.0, backward_b=1.0)
    plan = gradients_within_budget(plan_of(*names), step, 0.05, None)
    wanted = dict.fromkeys(names[:2], BF16) | dict.fromkeys(names[2:], INT8)
    assert {d.site.fqn: d.chosen for d in plan.decisions.values()} == wanted
    decision, off = plan.decisions["forward_a#0:output"], "gradients were off by 14.21% (budget 5.00%)"
    assert decision.reason.startswith(f"less noise than int8_rowwise/aten: {off}")
    assert off in dict(decision.rejected)[INT8] and BF16 not in dict(decision.rejected)


@pytest.mark.parametrize(("budget", "left"), [(INF, INT8), (0.2, INT8), (0.05, BF16), (1e-6, KEPT), (0.0, KEPT)])
def test_budgets(budget, left):
    step = step_with(forward=10.0)
    plan = gradients_within_budget(plan_of("forward"), step, budget, None)
    assert plan.decisions["forward#0:output"].chosen == left
    assert step.asked <= 5


# ---------------------------------------------------------------- the error


@pytest.mark.parametrize(
    ("made", "wanted", "error"),
    [
        ([], [], 0.0),
        ([[3.0, 4.0]], [[3.0, 4.0]], 0.0),
        ([[1.1, -1.1]], [[1.0, -1.0]], 0.1),
        ([[10.0], [0.2]], [[10.0], [0.1]], math.sqrt(0.5)),  # a small tensor counts as much as a large one
        ([[10.0], [2e-6]], [[10.0], [1e-6]], 1e-4 / math.sqrt(2)),  # but not rounding errors alone
        ([[10.0], [0.0]], [[10.0], [0.0]], 0.0),
        ([[NAN, 1.0]], [[1.0, 1.0]], INF),
        ([[INF]], [[1.0]], INF),
        ([[5.0, 1.0]], [[NAN, 1.0]], 0.0),  # nothing to compare with
        ([[0.0]], [[0.0]], 0.0),
        ([[0.1]], [[0.0]], INF),
        ([None, [1.0]], [None, [1.0]], 0.0),
    ],
)
def test_gradient_error(made, wanted, error):
    tensors = ([None if value is None else torch.tensor(value) for value in values] for values in (made, wanted))
    assert gradient_error(*tensors) == pytest.approx(error, rel=1e-5, abs=1e-9)
