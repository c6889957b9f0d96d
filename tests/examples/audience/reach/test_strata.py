"""Summing features out one after the other says what a product over all strata says, in whatever order it is done."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.audience.reach.strata import Share, Strata, joined, summed_out

COVER = ("a", "b", "c", "d")


@st.composite
def populations(draw):
    """(strata, sizes of their codes, shares of features outside, a cell of each stratum, how many cells)"""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = {name: draw(st.integers(1, 4)) for name in COVER}
    every = np.stack([each.ravel() for each in np.indices(tuple(sizes.values()))])
    there = np.sort(random.permutation(every.shape[1])[: draw(st.integers(1, every.shape[1]))])
    counts = random.integers(1, 1000, len(there))
    strata = Strata(dict(zip(COVER, every[:, there], strict=True)), counts)
    shares = {}
    for i in range(draw(st.integers(0, 4))):
        on = tuple(draw(st.permutations(COVER))[: draw(st.integers(0, 4))])
        of = random.random((*(sizes[name] for name in on), 2 ** draw(st.integers(1, 2))))
        shares[f"feature {i}"] = Share(on, of / of.sum(-1, keepdims=True))
    cells = draw(st.sampled_from([1, 2, 4]))
    return strata, sizes, shares, random.integers(0, cells, len(there)), cells


@given(populations())
@settings(max_examples=200, deadline=None)
def test_features_are_summed_out_as_over_each_stratum(population) -> None:
    strata, sizes, shares, cell, cells = population
    found, order = summed_out(strata, shares, sizes, cell, cells)
    assert sorted(order) == sorted(shares)
    wanted = np.zeros((math.prod(shares[name].of.shape[-1] for name in order), cells))
    for i, rows in enumerate(strata.counts):
        own = np.array([float(rows)])
        for name in order:
            share = shares[name]
            own = np.multiply.outer(own, share.of[tuple(strata.codes[each][i] for each in share.given)]).ravel()
        wanted[:, cell[i]] += own
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


@given(populations(), st.sets(st.sampled_from(COVER)))
@settings(max_examples=100, deadline=None)
def test_strata_that_are_alike_are_one_or_stay_as_they_are(population, names) -> None:
    strata, sizes, *_ = population
    codes = {name: strata.codes[name] for name in COVER if name in names}
    shape = [sizes[name] for name in codes]
    found = joined(Strata(codes, strata.counts), shape)
    assert list(found.codes) == list(codes)

    def table(of: Strata) -> np.ndarray:
        made = np.zeros(shape)
        np.add.at(made, tuple(of.codes.values()), of.counts if shape else of.counts.sum())
        return made

    np.testing.assert_array_equal(table(found), table(Strata(codes, strata.counts)))
    if math.prod(shape) <= len(strata.counts):
        assert len(found.counts) == np.count_nonzero(table(found))
