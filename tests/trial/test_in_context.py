"""The walk of plans by modelled steps: here the model is a table, in tests/preview it is what a GPU would launch."""

from __future__ import annotations

import itertools

import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st

from loka_compile.spec.decision import KEEP, KEPT, Candidate, Decision, Score
from loka_compile.spec.plan import Plan
from loka_compile.spec.site import Site
from loka_compile.trial.in_context import Step, back, families, fastest, without_casts

BLOCK, BF16 = Candidate("fp8_blockwise", "triton"), Candidate("bf16", "triton")


def decision(name, chosen=BLOCK, width=64, role="output", **us):
    site = Site(f"{name}#0:{role}", "mm", role, *map(sympy.Integer, (1, 8, width, 8)), torch.bfloat16, name)
    names = {"keep": KEEP, "block": str(BLOCK), "bf16": str(BF16)}
    scores = {names[key]: Score(time_us=time) for key, time in us.items()}
    return Decision(site, chosen, "fastest", scores, ((KEPT, "slower"),))


def plan_of(*decisions):
    return Plan("h100", {each.site.key: each for each in decisions})


def clock_of(table, timed):
    """us of a step: what `table` has for each site's name and choice, added up; timed: the plans it was asked for."""

    def clock(plan):
        timed.append(plan)
        spent = {(d.site.fqn, d.site.role != "output"): table[d.site.fqn, d.chosen] for d in plan.decisions.values()}
        return Step(sum(spent.values()), spent)

    return clock


def test_what_costs_the_graph_more_than_it_saves_goes_back_to_a_kernel_that_casts_nothing():
    plan = plan_of(decision("head", keep=20, block=9, bf16=13), decision("tail", keep=20, block=9, bf16=13))
    table = {("head", BLOCK): 24, ("head", BF16): 13, ("head", KEPT): 20}
    table |= {("tail", BLOCK): 9, ("tail", BF16): 13, ("tail", KEPT): 20}
    best, step = fastest(plan, clock_of(table, timed := []), 9)
    assert [d.chosen for d in best.decisions.values()] == [BF16, BLOCK] and step.us == 22
    assert (
        best.raced == f"22.0 us a step, 40.0 unplanned, 33.0 as single GEMMs' times had it; {len(timed)} graphs "
        "modelled for h100"
    )
    head, tail = best.decisions.values()
    assert "fp8_blockwise/triton was faster by single times; the graph is faster so, modelled: 22.0 us" in head.reason
    assert head.rejected == ((KEPT, "slower"), (BLOCK, "slower in the graph, modelled"))
    assert tail == plan.decisions["tail#0:output"]


def test_what_casts_is_taken_back_at_once_where_the_walk_could_not_tell_it_apart():
    """A module's backward: one product that saves, and one whose cast costs more than that."""
    good = decision("a", BF16, role="grad_input", keep=20, bf16=10)
    plan = plan_of(good, decision("a", BLOCK, role="grad_weight", keep=20, block=9))

    def clock(plan):
        chosen = {d.site.role: d.chosen for d in plan.decisions.values()}
        us = {BF16: 10, KEPT: 20}[chosen["grad_input"]] + {BLOCK: 40, KEPT: 20}[chosen["grad_weight"]]
        return Step(us, {("a", True): us})

    best, step = fastest(plan, clock, 3)
    assert [d.chosen for d in best.decisions.values()] == [BF16, KEPT] and step.us == 30


def test_never_slower_than_unplanned():
    plan = plan_of(decision("a", keep=20, block=9), decision("b", keep=20, block=9))
    table = {("a", BLOCK): 30, ("b", BLOCK): 25, ("a", KEPT): 20, ("b", KEPT): 20}
    best, step = fastest(plan, clock_of(table, []), 2)  # no try is left for what lies between
    assert not best.lowered and step.us == 40 and best.raced.startswith("40.0 us a step, 40.0 unplanned, 55.0 as")


def test_a_plan_that_lowers_nothing_stays_as_it_is():
    plan = plan_of(decision("a", KEPT, keep=20))
    assert fastest(plan, clock_of({("a", KEPT): 20}, timed := []), 9)[0] is plan and len(timed) == 1


def test_of_two_as_fast_the_one_with_less_lowered():
    plan = plan_of(decision("a", keep=20, block=9), decision("b", width=128, keep=20, block=9))
    table = {("a", BLOCK): 10, ("b", BLOCK): 20, ("a", KEPT): 20, ("b", KEPT): 20}
    best, _ = fastest(plan, clock_of(table, []), 9)
    assert [d.chosen for d in best.decisions.values()] == [BLOCK, KEPT]


def test_repeated_modules_stand_alike():
    sites = [decision(f"layers.{i}.mlp") for i in range(3)]
    other = [decision("layers.3.mlp", width=128), decision("layers.4.mlp", BF16), decision("layers.5.mlp", KEPT)]
    backward = decision("layers.1.mlp", role="grad_input")
    found = families(plan_of(*sites, *other, backward))
    assert [len(family) for family in found] == [3, 1, 1, 1]


def test_back_to_the_models_dtype_where_its_kernel_pays():
    assert without_casts(decision("a", keep=20, block=9, bf16=13)) == BF16
    assert without_casts(decision("a", keep=12, block=9, bf16=13)) == KEPT
    assert without_casts(decision("a", BF16, keep=20, block=9, bf16=13)) == KEPT
    assert without_casts(decision("a", keep=20, block=9)) == KEPT
    plan = plan_of(decision("a", keep=20, block=9, bf16=13))
    assert back(plan, plan.lowered, to_keep=True).lowered == []


@given(st.data())
def test_the_result_is_the_fastest_plan_that_was_timed(data):
    names, us = ["a.0", "a.1", "b", "c"], st.integers(1, 50)
    plan = plan_of(*(decision(n, width=64 * len(n), keep=20, block=9, bf16=data.draw(us)) for n in names))
    table = {pair: data.draw(us) for pair in itertools.product(names, (BLOCK, BF16, KEPT))}
    tries = data.draw(st.integers(2, 9))
    best, step = fastest(plan, clock_of(table, timed := []), tries)
    assert len(timed) <= tries
    assert step.us == min(clock_of(table, [])(each).us for each in timed) == clock_of(table, [])(best).us
