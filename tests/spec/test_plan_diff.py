"""The difference of two plans, for a reviewer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sympy
import torch

from loka_compile.spec.decision import KEEP, KEPT, Candidate, Decision, Score
from loka_compile.spec.plan import Plan
from loka_compile.spec.plan_diff import diff
from loka_compile.spec.site import Site

INT8 = Candidate("int8_rowwise", "aten")


def decision(key: str, chosen: Candidate = INT8, reason: str = "fastest within budget", n: int = 64) -> Decision:
    sizes = (sympy.Integer(size) for size in (1, 8, n, 32))
    return Decision(Site(key, "mm", "output", *sizes, torch.float32), chosen, reason, {KEEP: Score(time_us=10.0)})


def plan(*decisions: Decision, target: str = "cpu") -> Plan:
    return Plan(target, {each.site.key: each for each in decisions})


def test_equal_plans():
    difference = diff(plan(decision("a")), plan(decision("a")))
    assert not difference
    assert str(difference) == "no difference"


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        (plan(decision("a")), plan(), "- a: int8_rowwise/aten"),
        (plan(), plan(decision("a")), "+ a: int8_rowwise/aten (fastest within budget)"),
        (
            plan(decision("a")),
            plan(decision("a", KEPT, "MERE 0.3, budget 0.2")),
            "~ a: int8_rowwise/aten -> keep (MERE 0.3, budget 0.2)",
        ),
        (
            plan(decision("a")),
            plan(decision("a", n=128)),
            "~ a: int8_rowwise/aten, (8, 32) @ (32, 64) in float32 -> (8, 32) @ (32, 128) in float32 "
            "(fastest within budget)",
        ),
        (plan(decision("a")), plan(decision("a"), target="h100"), "target: cpu -> h100"),
    ],
)
def test_each_difference(old, new, shown):
    assert diff(old, new)
    assert str(diff(old, new)) == shown


def test_new_numbers_for_the_same_choice_are_no_difference():
    slower = replace(decision("a"), scores={KEEP: Score(time_us=11.0)})
    difference = diff(plan(decision("a")), plan(slower))
    assert not difference
    assert str(difference) == "no difference in any choice; numbers or reasons differ at 1 sites with the same choice"


def test_several_differences_at_once():
    old = plan(decision("a"), decision("b"), decision("c"))
    new = plan(decision("b", KEPT, "too slow"), decision("c"), decision("d"))
    assert [line[:3] for line in str(diff(old, new)).splitlines()] == ["- a", "+ d", "~ b"]
