"""What a report says first, of any numbers that a plan can hold."""

from __future__ import annotations

import json

import pytest

from loka_compile.inspect.explain import explain_plan
from loka_compile.report import chrome_trace, document
from loka_compile.report.compare import compared
from loka_compile.report.page import as_json, html
from loka_compile.report.texts import finite
from loka_compile.report.verdict import of_explanation
from loka_compile.spec.options import Options
from loka_compile.spec.plan import Plan
from tests.report.plans import plan_with

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("bad", [INF, NAN, -INF])
def test_a_time_that_is_none_is_not_added(bad, valid):
    made = document.of_plan(plan_with(time_us=bad), "plan")
    assert made["verdict"]["gemm_before_us"] == made["verdict"]["gemm_after_us"] == 200.0
    [slow] = [
        event for event in chrome_trace.events([made]) if event.get("tid") == 2 and event.get("name") == "fc#0:output"
    ]
    assert slow["dur"] == 100.0
    assert valid(json.loads(as_json(made))) == [] and valid(compared(made, made)) == []


@pytest.mark.parametrize("bad, said", [(INF, "inf"), (NAN, "nan")])
def test_an_error_without_bound_is_the_worst(bad, said):
    made = document.of_plan(plan_with(mere=bad), "plan")["verdict"]
    assert (made["worst_mere"], made["worst_site"]) == (said, "fc#0:output")


def test_a_site_without_a_score(valid):
    plan = plan_with()
    [first, _] = plan.decisions.values()
    made = document.of_plan(Plan("cpu", {"fc#0:output": first.demoted("by hand")}), "plan")
    assert valid(made) == [] and made["verdict"]["lowered"] == 0
    made = document.of_plan(plan_with(time_us=None), "plan")
    assert valid(made) == [] and made["verdict"]["gemm_after_us"] == 200.0


def test_a_budget_that_was_lifted_is_written():
    plan = plan_with()
    found = of_explanation(explain_plan(plan), [], [], "cpu", Options(max_mere=INF))
    assert found["budget"] == {"mere": "inf", "sqnr_db": 20.0, "speedup": 1.05}
    assert json.dumps(found, allow_nan=False)


def test_a_plan_without_sites(valid):
    made = document.of_plan(Plan("cpu", {}), "plan")
    assert valid(made) == [] and made["verdict"]["sites"] == 0 and html(made)


def test_what_can_be_added():
    assert [finite(value) for value in (None, 3, 0.5, "inf", "nan", INF, NAN)] == [None, 3.0, 0.5, *[None] * 4]
