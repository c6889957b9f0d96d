"""Groups: the most alike first, never beyond a limit, and every merge and split has its reason."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.lattice.partitioner.describe import Portfolio, Weights, agreement, likeness, sketch
from examples.lattice.partitioner.partition import Limits, capacity, compared, cost, partition
from tests.examples.lattice.partitioner import plain
from tests.examples.lattice.partitioner.plain import between

BY_GRADIENT = Weights(0, 0, 1)
FREE = Limits(least=-1.0, conflict=-2.0)


def portfolio(name: str, direction: tuple[float, ...], **changed) -> Portfolio:
    plain = Portfolio(name, sketch([1]), sketch([1]), 0.0, 1.0, 1.0, torch.tensor(direction).expand(4, 1, -1))
    return replace(plain, **changed)


ABCD = [
    portfolio("a", (1.0, 0.0), revenue=6.0, flops=4.0),
    portfolio("b", (1.0, 0.1), revenue=2.0, flops=2.0),
    portfolio("c", (0.0, 1.0), flops=3.0),
    portfolio("d", (0.1, 1.0)),
]
DIRECTIONS = st.tuples(*[st.floats(-1, 1).map(lambda x: round(x, 2))] * 3)
FLOPS = st.integers(16, 80).map(lambda count: count / 16)  # their sums are exact, in whatever order they are taken
MANY = st.lists(st.tuples(DIRECTIONS, FLOPS), min_size=1, max_size=7)


def test_the_most_alike_merge_first_and_each_step_says_why():
    found = partition(ABCD, replace(FREE, least=0.5), BY_GRADIENT)
    assert found.groups == ((0, 1), (2, 3)) and found.flops == (4.5, 3.25)
    merges = [step for step in found.steps if step.merged]
    assert {step.left + step.right for step in merges} == {("a", "b"), ("c", "d")}
    assert "the most alike of 2 pairs that may merge (4 may not), saves" in merges[0].reason
    [apart] = [step for step in found.steps if not step.merged]
    assert apart.left == ("a", "b") and apart.right == ("c", "d") and "not alike enough, 0.10 < 0.50" in apart.reason
    assert "a + b | c + d: apart, alike 0.10 (IDs 1.00, timing 1.00, gradients +0.10); not alike" in found.explain()


def test_each_limit_is_kept_and_named():
    dear = partition(ABCD, replace(FREE, group=4.4), BY_GRADIENT)
    assert (0, 1) not in dear.groups and max(dear.flops) <= 4.4
    assert any("one model would cost" in step.reason for step in dear.steps if not step.merged)
    enough = partition(ABCD, replace(FREE, total=9.3), BY_GRADIENT)
    assert len(enough.groups) == 3 and sum(enough.flops) <= 9.3
    assert all("nothing need merge" in step.reason for step in enough.steps if not step.merged)
    opposed = [*ABCD, portfolio("e", (-1.0, 0.0))]
    torn = partition(opposed, Limits(least=-1.0), BY_GRADIENT)
    assert not any({0, 4} <= set(group) for group in torn.groups)
    assert any("gradients of a and e oppose each other, -1.00 < -0.20: split or untie" in s.reason for s in torn.steps)


def test_it_says_where_there_is_no_gradient_to_compare():
    chance = torch.stack([torch.ones(1, 2), -torch.ones(1, 2)] * 2)
    found = partition([ABCD[0], replace(ABCD[1], gradient=chance), replace(ABCD[0], name="c")], FREE, Weights())
    first, second = map(str, found.steps)
    assert "a and c: merged, alike 1.00 (IDs 1.00, timing 1.00, gradients +1.00)" in first
    assert "timing 1.00, no gradient to compare: its own parts do not agree)" in second
    mixed = partition([ABCD[0], replace(ABCD[1], gradient=chance), ABCD[2]], replace(FREE, least=2.0), Weights())
    both = between({(0, 2): likeness(ABCD[0], ABCD[2], Weights()), (1, 2): mixed.steps[-1].likeness}, (0, 1), (2,))
    assert "of 50% of pairs, others have none to compare" in compared(both)


@pytest.mark.parametrize("name", ["group", "total", "least", "conflict", "extra"])
def test_limits_that_are_no_numbers_are_refused(name):
    with pytest.raises(ValueError, match=name):
        Limits(**{name: float("nan")})


@pytest.mark.parametrize("wrong", [{"group": 0.0}, {"total": -1.0}, {"extra": -5.0}, {"extra": float("inf")}])
def test_limits_that_no_cost_has_are_refused(wrong):
    with pytest.raises(ValueError, match="group is more than 0"):
        Limits(**wrong)


def test_without_limits_all_merge_and_alone_none():
    assert partition(ABCD, FREE, Weights()).groups == ((0, 1, 2, 3),)
    assert partition(ABCD[:1], Limits(), Weights()).groups == ((0,),)
    assert len(partition(ABCD, Limits(least=1.1), Weights()).groups) == 4
    with pytest.raises(ValueError, match="no portfolio"):
        partition([], Limits(), Weights())


@given(MANY, st.floats(2, 12), st.floats(-1, 1))
def test_a_partition_keeps_its_limits_and_nothing_more_could_merge(given_, group, least):
    portfolios = [portfolio(str(i), direction, flops=flops) for i, (direction, flops) in enumerate(given_)]
    limits = Limits(group=group, least=least)
    found = partition(portfolios, limits, BY_GRADIENT)
    assert sorted(i for each in found.groups for i in each) == list(range(len(portfolios)))
    pairs = {
        (i, j): likeness(portfolios[i], portfolios[j], BY_GRADIENT) for i, j in combinations(range(len(portfolios)), 2)
    }
    for each in found.groups:
        assert len(each) == 1 or cost(portfolios, each, limits.extra) <= group
        assert all(pairs[pair].gradient >= limits.conflict for pair in combinations(each, 2))
    for a, b in combinations(found.groups, 2):
        opposed = any(pairs[min(i, j), max(i, j)].gradient < limits.conflict for i in a for j in b)
        unlike = between(pairs, a, b).total < least
        assert opposed or unlike or cost(portfolios, a + b, limits.extra) > group
    assert len(found.steps) == len(portfolios) - len(found.groups) + len(found.groups) * (len(found.groups) - 1) // 2


@given(
    st.lists(st.tuples(DIRECTIONS, FLOPS, st.sampled_from([0.0, 60.0, 9e4]), st.integers(1, 40)), max_size=9),
    st.sampled_from([Limits(), FREE, Limits(0.1 + 7), Limits(total=12.0, least=-1.0), Limits(least=-1.0, extra=0.0)]),
    st.sampled_from([Weights(), BY_GRADIENT, Weights(3, 0, 1)]),
)
def test_it_merges_as_if_every_pair_were_looked_at_again(given_, limits, weights):
    each = [
        portfolio(str(i), direction, flops=flops, delay=delay, users=sketch(range(ids)))
        for i, (direction, flops, delay, ids) in enumerate([*given_, ((1.0, 0.0, 0.0), 2.0, 0.0, 3)])
    ]
    fast, slow = partition(each, limits, weights), plain.partition(each, limits, weights)
    assert fast.groups == slow.groups and fast.flops == slow.flops
    assert [(s.left, s.right, s.merged, s.likeness) for s in fast.steps] == [
        (s.left, s.right, s.merged, s.likeness) for s in slow.steps
    ]
    assert fast.explain() == slow.explain()


def test_a_thousand_portfolios_take_seconds():
    kinds = torch.eye(20)
    many = [portfolio(str(i), tuple((kinds[i % 20] * (1 + i // 20)).tolist())) for i in range(1000)]
    start = time.process_time()
    found = partition(many, Limits(least=0.5), BY_GRADIENT)
    assert time.process_time() - start < 60
    assert found.groups == tuple(tuple(range(kind, 1000, 20)) for kind in range(20))


@given(st.lists(DIRECTIONS, min_size=2, max_size=6, unique=True))
def test_linkage_is_the_mean_over_pairs(directions):
    portfolios = [portfolio(str(i), direction) for i, direction in enumerate(directions)]
    found = partition(portfolios, FREE, BY_GRADIENT)
    where = {portfolio.name: i for i, portfolio in enumerate(portfolios)}
    for step in found.steps:
        agreements = [
            agreement(portfolios[where[a]].gradient, portfolios[where[b]].gradient)
            for a in step.left
            for b in step.right
        ]
        assert step.merged and step.likeness.total == pytest.approx(sum(agreements) / len(agreements), abs=1e-9)


def test_capacity_goes_by_revenue():
    assert capacity(ABCD, [(0, 1), (2, 3)], 100.0) == (80.0, 20.0)
    free = [replace(each, revenue=0.0) for each in ABCD]
    assert capacity(free, [(0,), (1, 2, 3)], 100.0) == (50.0, 50.0)
