"""Two reports side by side."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loka_compile.report import document
from loka_compile.report.compare import compared
from loka_compile.report.errors import ReportError
from loka_compile.spec.plan_diff import diff
from tests.report.plans import plan_with


@pytest.fixture
def plans(case):
    """The plan, and one with a site kept, one gone, and one with other numbers."""
    first, second, third, *_ = (key for key, decision in case.plan.decisions.items() if decision.lowered)
    decisions = dict(case.plan.decisions)
    decisions[first] = decisions[first].demoted("by hand")
    del decisions[second]
    scores = {name: replace(score, time_us=33.0) for name, score in decisions[third].scores.items()}
    decisions[third] = replace(decisions[third], scores=scores)
    return case.plan, replace(case.plan, decisions=decisions), (first, second, third)


def test_it_finds_what_the_plan_diff_finds(plans, valid):
    a, b, (first, second, third) = plans
    made = compared(document.of_plan(a, "a"), document.of_plan(b, "b"))
    assert valid(made) == []
    by_kind: dict[str, set[str]] = {}
    for key, _, _, kind, _ in made["changes"]:
        by_kind.setdefault(kind, set()).add(key)
    found = diff(a, b)
    assert by_kind["only_a"] == set(found.only_a) == {second}
    assert by_kind["changed"] == set(found.changed) == {first}
    assert by_kind["renumbered"] == {third} and found.renumbered == 1
    assert len(by_kind["same"]) == len(a.decisions) - 3
    [words] = [what for key, _, _, kind, what in made["changes"] if key == first]
    assert "recipe: int8_rowwise → keep" in words


def test_places_lead_to_the_site(plans):
    a, b, _ = plans
    made = compared(document.of_plan(a, "a"), document.of_plan(b, "b"))
    for key, here, there, *_ in made["changes"]:
        assert here < 0 or made["a"]["sites"][here]["key"] == key
        assert there < 0 or made["b"]["sites"][there]["key"] == key


def test_two_of_one_name_are_told_apart(case):
    plan = document.of_plan(case.plan, "plan.json")
    assert compared(plan, plan)["names"] == ["plan.json (first)", "plan.json (second)"]
    other = {**plan, "verdict": {**plan["verdict"], "target": "h100"}}
    assert compared(plan, other)["names"] == ["plan.json (cpu)", "plan.json (h100)"]
    older = {**plan, "made": {**plan["made"], "torch": "2.12"}}
    first, second = compared(older, plan)["names"]
    assert first.endswith("torch 2.12)") and first != second


def test_what_another_kind_does_not_know_is_no_difference():
    plan = document.of_plan(plan_with(), "plan")
    ran = [{**s, "outcome": "lowered", "runs_as": "x"} if s["outcome"] == "planned" else s for s in plan["sites"]]
    compiled = {**plan, "kind": "compilation", "sites": ran}
    unknown = {"recipe": "", "provider": "", "outcome": "profiled", "time_before_us": None, "time_after_us": None}
    profile = {**plan, "kind": "profile", "sites": [{**s, **unknown, "mere": None} for s in plan["sites"]]}
    for a, b in ((plan, compiled), (profile, plan), (compiled, profile)):
        assert {kind for *_, kind, _ in compared(a, b)["changes"]} == {"same"}
    lost = {**compiled, "sites": [{**s, "outcome": "missing"} if s["runs_as"] else s for s in ran]}
    assert [kind for *_, kind, _ in compared(plan, lost)["changes"]] == ["changed", "same"]


def test_a_comparison_is_not_compared(case):
    plan = document.of_plan(case.plan, "plan.json")
    with pytest.raises(ReportError, match="is a comparison already"):
        compared(plan, compared(plan, plan))
