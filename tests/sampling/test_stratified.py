"""Stratified samples: unbiased, of the size asked for, and fair to minorities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loka_compile.sampling.stratified import estimate, stratified_sample
from tests.sampling.population import population


def values_of(features):
    return [(name, value) for name, column in features.items() for value in np.unique(column)]


# The sample


@st.composite
def tables(draw):
    """(features, n, segments, min_per_segment): small tables of skewed and copied columns."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    rows = draw(st.integers(1, 400))
    features = {}
    for i in range(draw(st.integers(1, 5))):
        column = rng.geometric(draw(st.floats(0.1, 1.0)), rows)
        same = rng.random(rows) < draw(st.sampled_from([0.0, 0.9]))
        features[f"f{i}"] = np.where(same, features.get(f"f{i - 1}", column), column)
    segments = draw(st.lists(st.sampled_from(list(features)), unique=True))
    return features, draw(st.integers(1, rows + 5)), segments, draw(st.integers(1, 6)) if segments else 0


@given(tables(), st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_a_sample_is_of_the_size_asked_for_and_stands_for_all_rows(case, seed):
    features, n, segments, least = case
    rows = len(features["f0"])
    try:
        sample = stratified_sample(features, n, seed=seed, segments=segments, min_per_segment=least)
    except ValueError as error:
        assert segments and "of every segment take" in str(error)
        return
    assert len(sample) == min(n, rows) == len(set(sample.rows.tolist()))
    assert sample.rows.min() >= 0 and sample.rows.max() < rows
    assert sample.weights.sum().item() == pytest.approx(rows)
    assert sample.weights.min() >= 1
    for name in segments:
        drawn, there = features[name][sample.rows.numpy()], features[name]
        for value in np.unique(there):
            assert (drawn == value).sum() >= min(least, (there == value).sum())


@given(tables())
@settings(max_examples=15, deadline=None)
def test_totals_are_unbiased(case):
    """Every row's weights, averaged over seeds, come to 1; so do those of any set of rows (here: a random half)."""
    features, n, segments, least = case
    rows, seeds = len(features["f0"]), 150
    half = np.random.default_rng(0).random(rows) < 0.5
    totals = []
    for seed in range(seeds):
        try:
            sample = stratified_sample(features, n, seed=seed, segments=segments, min_per_segment=least)
        except ValueError:
            return
        totals.append(sample.weights.numpy()[half[sample.rows.numpy()]].sum())
    error = np.std(totals, ddof=1) / math.sqrt(seeds)
    assert abs(np.mean(totals) - half.sum()) <= 5 * error + 1e-6 + 1e-3 * rows


@pytest.mark.parametrize("least", [0, 6])
def test_every_row_is_drawn_as_often_as_its_weight_says(least):
    features, _ = population(400)
    hits, weights, seeds = np.zeros(400), np.zeros(400), 1500
    for seed in range(seeds):
        segments = ["country"] if least else []
        sample = stratified_sample(features, 90, seed=seed, segments=segments, min_per_segment=least)
        hits[sample.rows.numpy()] += 1
        weights[sample.rows.numpy()] += sample.weights.numpy()
    assert np.abs(weights / seeds - 1).max() < 0.35  # 1500 seeds: a standard error of some 5 %
    assert (weights / seeds).mean() == pytest.approx(1)
    if least == 0:
        assert np.abs(hits / seeds - 90 / 400).max() < 0.15


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**6), least=st.integers(1, 40))
def test_every_segment_gets_its_rows_or_all_it_has(seed, least):
    """Down to cells that are drawn whole; once a part of one was asked for one row more than it had."""
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(5, 400))
    features = {f"f{i}": rng.choice(6, rows, p=rng.dirichlet(np.full(6, 0.3))) for i in range(int(rng.integers(1, 4)))}
    required = sum(
        min(least, int((column == value).sum())) for name, value in values_of(features) for column in [features[name]]
    )
    n = min(rows, max(int(rng.integers(1, rows + 1)), required))
    sample = stratified_sample(features, n, seed=seed, segments=list(features), min_per_segment=least)
    assert len(sample) == n == len(sample.rows.unique())
    for name, value in values_of(features):
        drawn = int((features[name][sample.rows.numpy()] == value).sum())
        assert drawn >= min(least, int((features[name] == value).sum()))


def test_a_seed_decides_the_sample():
    features, _ = population()
    one, same, other = (stratified_sample(features, 300, seed=seed) for seed in (3, 3, 4))
    for name in ("rows", "weights", "strata"):
        assert torch.equal(getattr(one, name), getattr(same, name))
    assert not torch.equal(one.rows, other.rows)
    tensors = {name: torch.from_numpy(column) for name, column in features.items()}
    assert torch.equal(stratified_sample(tensors, 300, seed=3).rows, one.rows)


def test_stable_strata_get_their_share_and_the_others_share_theirs():
    country = np.repeat(np.arange(12), [500, 300, 100, 40, 20, 10, 9, 8, 6, 4, 2, 1])
    sample = stratified_sample({"country": country, "copy": country}, 100)
    drawn = np.bincount(country[sample.rows.numpy()], minlength=12)
    assert drawn[:5].tolist() == [50, 30, 10, 4, 2]
    assert drawn[5:].sum() == 4  # of 40 rows in strata of at most 10 = N / n
    assert set(sample.weights.tolist()) == {10.0}
    assert np.bincount(sample.strata.numpy()).min() >= 2


def test_independent_features_leave_one_stratum():
    rng = np.random.default_rng(0)
    sample = stratified_sample({"a": rng.integers(0, 5, 999), "b": rng.integers(0, 5, 999)}, 50)
    assert sample.cover == () and sample.strata.unique().tolist() == [0]


def test_more_budget_than_rows_gives_all_rows():
    sample = stratified_sample({"a": [3, 1, 1]}, 10, segments=["a"], min_per_segment=5)
    assert sample.rows.tolist() == [0, 1, 2] and sample.weights.tolist() == [1, 1, 1]
    exact = estimate(sample, [1.0, 2.0, 6.0])
    assert (exact.value, exact.low, exact.high) == (3, 3, 3)
    assert estimate(sample, 1.0, [False] * 3, of="total").high == 0


@pytest.mark.parametrize(
    "features, options, message",
    [
        ({}, {}, "empty"),
        ({"a": []}, {}, "empty"),
        ({"a": [0, 1], "b": [0, 1, 2]}, {}, "different lengths: {'a': 2, 'b': 3}"),
        ({"a": [0, -7]}, {}, "'a' has negative values .*-7"),
        ({"a": [[0, 1]]}, {}, r"'a' has shape \(1, 2\)"),
        ({"a": [0, 1]}, {"n": 0}, "at least 1"),
        ({"a": [0, 1]}, {"segments": ["a"]}, "go together"),
        ({"a": [0, 1]}, {"min_per_segment": 1}, "go together"),
        ({"a": [0, 1]}, {"segments": ["b"], "min_per_segment": 1}, r"\['b'\] are no features; there are \['a'\]"),
        ({"a": range(9)}, {"n": 8, "segments": ["a"], "min_per_segment": 1}, "take 9 rows, but the sample is of 8"),
    ],
)
def test_what_cannot_be_sampled_is_refused(features, options, message):
    with pytest.raises(ValueError, match=message):
        stratified_sample(features, **{"n": 1, **options})


def test_real_numbers_are_refused_with_advice():
    with pytest.raises(TypeError, match=r"float64, not integer; quantile_buckets"):
        stratified_sample({"a": [0.5, 1.0]}, 1)


# Minorities


def segment_errors(features, values, small, rows, weights):
    """(2,) mean absolute error over the small segments: of their share of all rows, and of their mean value.

    A segment of which no row was drawn is guessed to be as all are.
    """
    shares, means = [], []
    for name, value in small:
        where = features[name] == value
        drawn = where[rows]
        mass = weights[drawn].sum()
        guess = (
            (weights * values[rows])[drawn].sum() / mass if drawn.any() else np.average(values[rows], weights=weights)
        )
        shares.append(abs(mass - where.sum()) / len(where))
        means.append(abs(guess - values[where].mean()))
    return np.array([np.mean(shares), np.mean(means)])


def compare(features, values, n, segments, least, seeds):
    """Errors as above and of the mean of all rows, as shares of uniform sampling's: (plain, with min_per_segment)."""
    population = len(values)
    small = [
        (name, v)
        for name, v in values_of({s: features[s] for s in segments})
        if 0 < (features[name] == v).mean() < 0.01
    ]
    errors = np.zeros((3, 3))
    for seed in range(seeds):
        uniform = np.random.default_rng(seed).choice(population, n, replace=False)
        designs = [(uniform, np.full(n, population / n))]
        for options in ({}, {"segments": segments, "min_per_segment": least}):
            sample = stratified_sample(features, n, seed=seed, **options)
            designs.append((sample.rows.numpy(), sample.weights.numpy()))
        for design, (rows, weights) in enumerate(designs):
            errors[design, :2] += segment_errors(features, values, small, rows, weights)
            errors[design, 2] += abs(np.average(values[rows], weights=weights) - values.mean())
    plain, guarded = errors[1] / errors[0], errors[2] / errors[0]
    print(f"\n{len(small)} segments under 1 %, n = {n} of {population}, {seeds} seeds; error over uniform's")
    for name, ratios in (("proportional", plain), (f"at least {least} each", guarded)):
        print(f"  {name:>18}: share {ratios[0]:.2f}, mean {ratios[1]:.2f}, mean of all rows {ratios[2]:.2f}")
    return plain, guarded


def test_small_segments_of_a_made_up_population():
    features, values = population(40_000)
    plain, guarded = compare(features, values, 1200, ["country"], 60, seeds=40)
    assert plain[0] <= 0.5  # how large the segments are
    assert guarded[0] <= 0.5 and guarded[1] <= 0.5  # and what is measured on them


def test_small_segments_of_movielens():
    from examples import movielens

    try:
        ratings = movielens.load().train
    except FileNotFoundError as error:
        pytest.skip(str(error))
    names = [name for name in movielens.FIELDS if name not in ("user", "item")]
    features = {name: ratings.ids[:, movielens.FIELDS.index(name)].numpy() for name in names}
    genres = {f"genre {i}": (ratings.genres == i).any(1).numpy() for i in range(1, int(ratings.genres.max()) + 1)}
    segments = ["age", "gender", "occupation", *genres]
    plain, guarded = compare({**features, **genres}, ratings.labels.double().numpy(), 4000, segments, 60, seeds=12)
    assert plain[0] < 1  # not halved: a cover of many features knows none of them well
    assert guarded[0] <= 0.5 and guarded[1] <= 0.5
