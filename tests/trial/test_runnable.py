"""A plan made at one size, in a graph whose site cannot take the choice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sympy
import torch

from loka_compile.spec.decision import KEPT, Candidate, Decision, Score
from loka_compile.spec.plan import Plan
from loka_compile.spec.site import Site
from loka_compile.trial.runnable import runnable

INT8, BF16, FP8 = Candidate("int8_rowwise", "aten"), Candidate("bf16", "aten"), Candidate("fp8_rowwise", "aten")


def grad_weight(rows):
    sizes = sympy.Integer(1), sympy.Integer(64), sympy.Integer(512), rows
    return Site("fc#0:grad_weight", "mm", "grad_weight", *sizes, torch.float32, "fc", gradient="lhs")


def made(**times):
    """A plan made at 512 rows; bf16's time is the one given."""
    scores = {"keep": Score(time_us=300.0), str(INT8): Score(0.01, 40.0, 0.01, 100.0)}
    scores |= {str(FP8): Score(0.3, 20.0, 0.3)}
    rejected = [(FP8, "MERE 0.3, wanted 0.2")]
    for candidate, us in ((BF16, times.get("bf16")),):
        if us is not None:
            scores[str(candidate)] = Score(0.001, 50.0, 0.001, us)
            rejected.append((candidate, "slower"))
    known = grad_weight(sympy.Integer(512))
    return Plan("cpu", {known.key: Decision(known, INT8, "fastest", scores, tuple(rejected))})


ANY, FEW, MANY = sympy.Symbol("s0", integer=True, positive=True), sympy.Integer(1024), sympy.Integer(200_000)


@pytest.mark.parametrize("rows", [ANY, MANY])
def test_the_next_choice_takes_the_place_of_one_that_cannot_run(rows):
    """Sums over any number of rows, or over too many, may not fit into 32 bits."""
    [decision] = runnable(made(bf16=150.0), [grad_weight(rows)], 1.05, "cpu").decisions.values()
    assert decision.chosen == BF16 and decision.score.time_us == 150
    rejected = dict(decision.rejected)
    assert "can overflow int32" in rejected[INT8] and "MERE" in rejected[FP8] and BF16 not in rejected


@pytest.mark.parametrize("us", [None, 299.0])
def test_without_one_that_pays_the_site_is_kept(us):
    """299 us against 300 is less than what a site has to win by."""
    [decision] = runnable(made(bf16=us), [grad_weight(ANY)], 1.05, "cpu").decisions.values()
    assert decision.chosen == KEPT and "can overflow int32" in decision.reason and decision.score.time_us == 300


def test_what_runs_stays_as_it_was_planned():
    plan = made(bf16=150.0)
    assert runnable(plan, [grad_weight(FEW)], 1.05, "cpu") == plan
    elsewhere = replace(plan, target="h100")  # emulated here, to show its numerics
    assert runnable(elsewhere, [grad_weight(ANY)], 1.05, "cpu") == elsewhere
