"""Finalists: which uniform plans race the one that was made, and what each of their sites says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sympy
import torch
from torch import nn

import loka_compile as loka
from loka_compile.spec.decision import KEEP, KEPT, Candidate, Decision, Range, Score
from loka_compile.spec.options import Options
from loka_compile.spec.plan import Plan
from loka_compile.spec.site import Site
from loka_compile.trial import finalists as module
from loka_compile.trial.finalists import NEAR, changes, finalists

BF16, INT8, AFFINE = (Candidate(recipe, "aten") for recipe in ("bf16", "int8_rowwise", "uint8_affine"))


def decision(name, chosen, rejected=(), **us):
    """A site's decision; us: microseconds by recipe, None for one that missed a budget and was not timed."""
    site = Site(f"{name}#0:output", "mm", "output", *map(sympy.Integer, (1, 8, 8, 8)), torch.float32, name)
    scores = {KEEP if key == KEEP else f"{key}/aten": Score(time_us=time) for key, time in us.items()}
    return Decision(site, chosen, "fastest", scores, tuple((c, "slower") for c in rejected))


def plan_of(*decisions, target="cpu"):
    return Plan(target, {each.site.key: each for each in decisions})


WIDE = decision("wide", INT8, [BF16], keep=100, bf16=60, int8_rowwise=20)
THIN = decision("thin", BF16, [INT8], keep=9, bf16=4, int8_rowwise=4.5)
KEPT_THIN = decision("kept", KEPT, [INT8], keep=2, int8_rowwise=2.5)


def test_one_recipe_wherever_it_is_within_the_budgets_whatever_its_time():
    plan = plan_of(WIDE, THIN, KEPT_THIN)
    (uniform,) = finalists(plan, Options())
    assert [d.chosen for d in uniform.decisions.values()] == [INT8, INT8, INT8]
    assert list(changes(plan, uniform)) == ["thin#0:output", "kept#0:output"]
    thin = uniform.decisions["thin#0:output"]
    assert thin.reason.startswith("int8_rowwise/aten wherever it is within the error budgets")
    assert thin.rejected == ((BF16, "faster alone; the graph was faster with int8_rowwise/aten, measured here"),)
    assert uniform.decisions["wide#0:output"] == WIDE


def test_what_missed_a_budget_stays_as_it_was():
    over = decision("over", BF16, [INT8], keep=9, bf16=4, int8_rowwise=None)
    (uniform,) = finalists(plan_of(WIDE, THIN, over), Options())
    assert uniform.decisions["over#0:output"] == over


def test_what_cannot_win_does_not_race():
    slow = replace(THIN, scores={**THIN.scores, "int8_rowwise/aten": Score(time_us=24 * NEAR)})
    assert finalists(plan_of(WIDE, slow), Options()) == []  # 20 + 4 us as planned


def test_what_changes_next_to_nothing_does_not_race():
    """A site of 1 us beside 100 us: whichever way, a race cannot tell."""
    large = decision("large", INT8, [BF16], keep=900, bf16=600, int8_rowwise=100)
    little = decision("little", BF16, [INT8], keep=9, bf16=1, int8_rowwise=1.1)
    assert finalists(plan_of(large, little), Options()) == []
    more = decision("little", BF16, [INT8], keep=9, bf16=4, int8_rowwise=4.4)
    assert len(finalists(plan_of(large, more), Options())) == 1


def test_the_nearest_race_and_not_more_than_may():
    many = decision("many", BF16, [INT8, AFFINE], keep=99, bf16=50, fp16=53, int8_rowwise=51, uint8_affine=52)
    found = finalists(plan_of(many), Options())
    assert [d.chosen for each in found for d in each.decisions.values()] == [INT8, AFFINE] and len(found) == module.MOST


@pytest.mark.parametrize(
    "plan, options",
    [
        (plan_of(WIDE, THIN, target="h100"), Options(target="h100")),
        (plan_of(WIDE, THIN), Options(min_speedup=0)),
        (plan_of(WIDE, THIN), Options(race=False)),
        (plan_of(WIDE, THIN), Options(recipes=("bf16",))),
        (plan_of(KEPT_THIN), Options()),
        (plan_of(WIDE, replace(THIN, ranges=(Range(0, KEPT), Range(64, BF16)))), Options()),
        (plan_of(WIDE), Options()),
    ],
    ids=["other hardware", "no speed", "no race", "recipe not allowed", "nothing lowered", "ranges", "itself"],
)
def test_where_there_is_no_finalist(plan, options):
    assert finalists(plan, options) == []


def test_the_race_of_a_real_model_tells_of_its_finalist(fresh_dynamo, op_by_op, monkeypatch):
    """Which of the two wins op by op is chance; that one plan of the two comes out whole is not."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 16)), torch.randn(64, 64)
    with loka.probe(model) as probe, torch.no_grad():
        model(x)
    monkeypatch.setattr(module, "NEAR", 1e9)
    options = {"profile": probe.profile, "recipes": ("bf16", "int8_rowwise"), "min_speedup": 1e-6}
    planned = loka.dispatch(probe.profile, options=loka.Options(**{k: v for k, v in options.items() if k != "profile"}))
    uniform = [planned, *finalists(planned, Options(recipes=options["recipes"], min_speedup=1e-6))]
    compiled = torch.compile(model, backend="loka", options=options)
    with torch.no_grad():
        compiled(x)
    found = loka.plan(compiled)
    choices = lambda plan: [d.chosen for d in plan.decisions.values()]  # noqa: E731
    assert choices(found) in [*map(choices, uniform), [KEPT, KEPT]]
