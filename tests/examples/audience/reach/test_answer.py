"""Intervals of counts, shares, totals and means hold the truth, also where few rows say it or all say the same."""

import math

import numpy as np
import pytest

from examples.audience.reach.answer import Answer, Groups, added, count, mean, share, total
from examples.audience.reach.measures import of_values


def summed(group, weight, value):
    """The sums of rows that match."""
    groups, owner = np.unique(group, return_inverse=True)
    columns = (weight, weight * value, weight**2, weight**2 * value, (weight * value) ** 2)
    return Answer(groups, np.stack([np.bincount(owner, each, len(groups)) for each in columns], axis=1), len(group))


def drawn(stratum, matching, values, rate, rng):
    """A stratified sample: the sums over its rows that match, those over all with a 1 for them, and its groups."""
    size = np.bincount(stratum)
    n = np.maximum(2, np.round(size * rate)).astype(int)
    rows = np.concatenate([rng.choice(np.flatnonzero(stratum == s), n[s], replace=False) for s in range(len(size))])
    group, weight = stratum[rows], (size / n)[stratum[rows]]
    there = matching[rows]
    groups = Groups(n, size.astype(float), np.bincount(group, weight**2), float(weight.max()), float(len(stratum)))
    own = summed(group[there], weight[there], values[rows][there])
    return own, summed(group, weight, there.astype(float)), groups


def held(matching, values=None, stratum=None, rate=0.1, times=200):
    """How often each interval holds the truth."""
    stratum = np.zeros(len(matching), int) if stratum is None else stratum
    values = np.ones(len(matching)) if values is None else values
    spread, there = of_values(values), values[matching]
    truth = {"count": matching.sum(), "share": matching.mean(), "total": there.sum(), "mean": there.mean()}
    hits = {name: [] for name in truth}
    for seed in range(times):
        own, all_, groups = drawn(stratum, matching, values, rate, np.random.default_rng(seed))
        found = {"count": count(own, groups), "share": share(all_, groups)}
        found |= {"total": total(own, groups, spread), "mean": mean(own, groups, spread)}
        for name, reach in found.items():
            assert not reach.low > reach.value and not reach.value > reach.high
            hits[name].append(reach.low - 1e-9 <= truth[name] <= reach.high + 1e-9)
    return {name: float(np.mean(each)) for name, each in hits.items()}


@pytest.mark.parametrize("matching", [3, 12, 60, 1000, 1940, 1988, 1997])
def test_counts_of_few_of_half_and_of_nearly_all(matching):
    rng = np.random.default_rng(matching)
    there = rng.permutation(2000) < matching
    for stratum in (None, np.arange(2000) // 20):  # 200 rows of one stratum; 100 pairs
        rates = held(there, stratum=stratum)
        assert min(rates["count"], rates["share"]) >= 0.93, rates
        assert rates["count"] <= 0.995 or not 60 <= matching <= 1940, rates  # nor wider than they have to be


def test_strata_that_match_as_a_whole_but_for_a_few_rows():
    """In most samples all rows of a stratum agree, and its variance is nothing: 158 [158, 158] where 156 matched."""
    stratum = np.arange(2000) // 200
    there = stratum < 2
    there[[3, 250]], there[[700, 1500]] = False, True
    assert min(held(there, stratum=stratum).values()) >= 0.93
    own, _, groups = drawn(stratum, stratum < 2, np.ones(2000), 0.05, np.random.default_rng(0))
    found = count(own, groups)
    assert found.value == pytest.approx(400) and 300 < found.low < 400 < found.high < 500


@pytest.mark.parametrize(
    "values",
    [
        lambda rng: (rng.random(4000) < 0.004).astype(float),
        lambda rng: (rng.random(4000) < 0.996).astype(float),
        lambda rng: np.where(rng.random(4000) < 0.02, rng.exponential(50, 4000), 0.0),
        lambda rng: -np.where(rng.random(4000) < 0.02, rng.exponential(50, 4000), 0.0),
        lambda rng: rng.normal(100, 1, 4000),
    ],
    ids=["rare", "nearly all", "few and large", "few and negative", "normal"],
)
def test_totals_and_means_of_measures(values):
    rng = np.random.default_rng(1)
    rates = held(rng.random(4000) < 0.2, values(rng), np.arange(4000) // 400)
    assert min(rates["total"], rates["mean"]) >= 0.92, rates


def test_a_measure_that_no_row_has_is_not_known_to_be_nothing():
    """The mean was 0 [0, 0] from 78 rows, where 24 of 10,000 clicked."""
    clicks = of_values(np.r_[np.ones(24), np.zeros(9976)])
    groups = Groups(np.array([1000]), np.array([1e4]), np.array([1e5]), 10.0, 1e4)
    nothing = summed(np.zeros(78, int), np.full(78, 10.0), np.zeros(78))
    low, high = (f(nothing, groups, clicks) for f in (mean, total))
    assert (low.low, high.low) == (0, 0) and 0.03 < low.high < 0.06 and high.high == pytest.approx(24)
    nobody = summed(np.zeros(0, int), np.zeros(0), np.zeros(0))
    assert total(nobody, groups, clicks).low == 0 and total(nobody, groups, clicks).high == pytest.approx(24)


def test_one_row_says_little():
    groups = Groups(np.array([1]), np.array([1746.0]), np.array([1746.0**2]), 1746.0, 1746.0)
    one = summed(np.zeros(1, int), np.array([1746.0]), np.array([1.0]))
    spread = of_values(np.r_[np.zeros(1000), np.ones(746)])
    found = count(one, groups), total(one, groups, spread), mean(one, groups, spread)
    assert [(each.low, each.high) for each in found] == [(1, 1746), (0, 1746), (0, 1)]


def test_a_sample_of_all_rows_is_certain():
    groups = Groups(np.array([50]), np.array([50.0]), np.array([50.0]), 1 + 2e-16, 50.0)
    nobody, spread = summed(np.zeros(0, int), np.zeros(0), np.zeros(0)), of_values(np.arange(50.0))
    for found in (count(nobody, groups), total(nobody, groups, spread)):
        assert (found.value, found.low, found.high) == (0, 0, 0)
    assert math.isnan(mean(nobody, groups, spread).high)
    some = summed(np.zeros(7, int), np.ones(7), np.arange(7.0))
    for found, truth in ((count(some, groups), 7), (total(some, groups, spread), 21), (mean(some, groups, spread), 3)):
        assert (found.value, found.low, found.high) == pytest.approx((truth,) * 3)


def test_what_was_seen_is_inside():
    groups = Groups(np.array([10]), np.array([20.0]), np.array([40.0]), 2.0, 20.0)
    found = count(summed(np.zeros(9, int), np.full(9, 2.0), np.ones(9)), groups)
    assert found.low >= 9 and found.high <= 19


def test_without_half_of_the_shards_intervals_are_wider():
    rng = np.random.default_rng(3)
    own, _, groups = drawn(np.arange(2000) // 20, np.arange(2000) % 7 == 0, np.ones(2000), 0.1, rng)
    half = Groups(groups.rows // 2, groups.sizes, groups.squares / 2, groups.heaviest, groups.population)
    less = Answer(own.groups[::2], own.sums[::2] * 0.5, own.rows // 4)
    whole, part = count(own, groups), count(added([less, less]), half, 0.5)
    assert part.high - part.low > whole.high - whole.low
