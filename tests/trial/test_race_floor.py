"""A race that is not run: library calls alone tell that the unplanned graph is slower, or a plan saves too little."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.trial.racing import INT8, UINT8, Builder, forget, plan_of, race, sleeping, timed_plan


def test_a_graph_whose_products_alone_take_longer_is_not_compiled(cache):
    for _ in range(2):  # the second time from the verdict on disk
        builder = Builder(0.002, 0.006)
        plan, (_, artifacts) = race(plan_of(), builder, floor=lambda: 6_000.0)
        assert [len(each.lowered) for each in builder.built] == [2] and artifacts[0].lowered
        assert plan.raced.startswith("at least ")
        assert plan.raced.endswith("library calls alone take as long, measured here")
        assert 1.5 < float(plan.raced.split()[2].partition("x")[0]) < 3.1
        forget()


def test_a_plan_that_saves_too_little_to_tell_is_not_compiled(cache):
    for _ in range(2):  # the second time from the verdict on disk
        builder = Builder(0.001, 0.010)
        plan, (_, artifacts) = race(timed_plan(1_000.0, 950.0), builder, floor=lambda: 2_000.0)
        assert [len(each.lowered) for each in builder.built] == [0] and not artifacts[0].lowered and not plan.lowered
        for decision in plan.decisions.values():
            saves = float(decision.reason.removeprefix("all that is lowered saves ").partition("%")[0])
            assert 0.5 < saves <= 1.0 and decision.reason.endswith("too little for a race to tell")
        forget()


@pytest.mark.parametrize("before, after, floor_us", [(1_000.0, 800.0, 2_000.0), (1_000.0, 950.0, 300.0)])
def test_a_plan_that_may_save_more_races(cache, before, after, floor_us):
    """A twenty-fifth of the graph's time, found when that was run; or a third of what it takes at least."""
    builder = Builder(0.002, 0.010)
    plan, (_, artifacts) = race(timed_plan(before, after), builder, floor=lambda: floor_us)
    assert len(builder.built) == 2 and plan.lowered and artifacts[0].lowered
    assert plan.raced.endswith("x the unplanned graph's speed, measured here")


@pytest.mark.parametrize("floor_us", [0.0, 1_000.0, 2_200.0])
def test_a_floor_that_is_not_far_below_decides_nothing(cache, floor_us):
    builder = Builder(0.002, 0.006)
    plan, _ = race(plan_of(), builder, floor=lambda: floor_us)
    assert len(builder.built) == 2 and plan.raced.endswith("x the unplanned graph's speed, measured here")
    assert "at least" not in plan.raced


def test_finalists_race_without_the_unplanned_graph_too(cache):
    plan = plan_of()
    finalist = replace(plan, decisions={k: replace(d, chosen=UINT8) for k, d in plan.decisions.items()})
    built = []

    def build(of):
        built.append(of)
        return sleeping({INT8: 0.004, UINT8: 0.002}.get(of.decisions["a#0:output"].chosen, 0.009))

    won, (_, artifacts) = race([plan, finalist], build, floor=lambda: 9_000.0)
    assert won.decisions == finalist.decisions and artifacts == [0.002] and built == [plan, finalist]
    assert "at least" in won.raced and "that of the plan made from single times" in won.raced
