"""Stratified samples: unbiased, of the size asked for, and fair to minorities; strata from a minimum vertex cover."""

from __future__ import annotations

import math
from itertools import chain, combinations

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loka_compile.sampling import strata
from loka_compile.sampling.strata import (
    by_importance,
    combine,
    dependency_graph,
    feature_table,
    information,
    quantile_buckets,
    vertex_cover,
)
from loka_compile.sampling.stratified import Sample, estimate, stratified_sample


def population(rows=6000, seed=0):
    """(features, values): a country that decides language, device and the values; noise beside them; rare countries."""
    rng = np.random.default_rng(seed)
    shares = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.015, 0.008, 0.007, 0.006, 0.004])
    country = rng.choice(len(shares), rows, p=shares / shares.sum())
    language = np.where(rng.random(rows) < 0.85, country % 4, rng.integers(0, 4, rows))
    device = np.where(rng.random(rows) < 0.8, country % 3, rng.integers(0, 3, rows))
    features = {"noise": rng.integers(0, 5, rows), "language": language, "country": country, "device": device}
    values = 1 + 0.3 * country + 0.5 * language + rng.gamma(2.0, 1.0, rows)
    return features, values


def values_of(features):
    return [(name, value) for name, column in features.items() for value in np.unique(column)]


# The graph and its cover


def test_only_direct_dependencies_are_edges():
    features, _ = population(20_000)
    graph = dependency_graph(feature_table(features), np.random.default_rng(0))
    assert {frozenset(edge) for edge in graph.edges} == {
        frozenset(("country", "language")),
        frozenset(("country", "device")),
    }
    assert by_importance(graph, vertex_cover(graph)) == ("country",)  # log 10 < log 4 + log 3


def test_information_is_zero_between_independent_features_and_given_the_cause():
    rng = np.random.default_rng(0)
    cause, nothing = rng.integers(0, 4, 5000), np.zeros(5000, np.int64)
    a, b = ((cause + (rng.random(5000) < 0.2)) % 4 for _ in range(2))
    assert information(a, b, nothing) > 0.3
    assert information(a, b, cause) == 0
    assert information(a, rng.integers(0, 9, 5000), nothing) == 0
    assert information(cause, cause, nothing) == pytest.approx(math.log(4), abs=0.01)
    assert information(a, nothing, nothing) == 0


@st.composite
def weighted_graphs(draw, most=8):
    names = [f"f{i}" for i in range(draw(st.integers(1, most)))]
    graph = nx.Graph()
    for name in names:
        graph.add_node(name, weight=math.log(draw(st.integers(1, 40))))
    pairs = list(combinations(names, 2))
    graph.add_edges_from(draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else [])
    return graph


def weight(graph, nodes):
    return sum(graph.nodes[node]["weight"] for node in nodes)


def covers(graph, nodes):
    return all(a in nodes or b in nodes for a, b in graph.edges)


@given(weighted_graphs())
@settings(max_examples=150, deadline=None)
def test_the_cover_is_minimal_against_brute_force(graph):
    found = vertex_cover(graph)
    subsets = chain.from_iterable(combinations(graph, size) for size in range(len(graph) + 1))
    assert covers(graph, found)
    assert weight(graph, found) == pytest.approx(min(weight(graph, each) for each in subsets if covers(graph, each)))


@given(weighted_graphs(most=12))
@settings(max_examples=60, deadline=None)
def test_the_approximate_cover_weighs_at_most_twice_the_minimum(graph):
    exact = vertex_cover(graph)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strata, "EXACT_FEATURES", 0)
        found = vertex_cover(graph)
    assert covers(graph, found)
    assert weight(graph, found) <= 2 * weight(graph, exact) + 1e-9
    assert not any(covers(graph, found - {node}) for node in found)


def test_strata_are_numbered_in_lexicographic_order():
    table = feature_table({"a": [1, 0, 1, 0], "b": [5, 9, 2, 9]})
    assert combine(table, ("a", "b"), 4).tolist() == [2, 0, 1, 0]
    assert combine(table, ("b", "a"), 4).tolist() == [1, 2, 0, 2]
    assert combine(table, (), 4).tolist() == [0, 0, 0, 0]


def test_quantile_buckets_hold_equally_many_rows():
    values = torch.randn(8000, generator=torch.Generator().manual_seed(0))
    assert np.bincount(quantile_buckets(values, 8)).tolist() == [1000] * 8
    assert quantile_buckets([0.0] * 90 + [1.0] * 5 + [2.0] * 5, 4).max() <= 1
    assert quantile_buckets([3.0, math.nan, 1.0, math.inf, 2.0], 2).tolist() == [1, 2, 0, 1, 0]
    assert quantile_buckets([math.nan] * 3).tolist() == [0, 0, 0]


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


# Estimates


def simple_sample(n=50, rows=500):
    """A uniform sample as a Sample of one stratum."""
    picked = torch.arange(n)
    return Sample(picked, torch.full((n,), rows / n, dtype=torch.float64), torch.zeros_like(picked), (), rows)


def test_of_one_stratum_the_textbook_interval():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0)).double()
    found = estimate(simple_sample(), values)
    spread = 2.0096 * math.sqrt((1 - 50 / 500) * values.var().item() / 50)  # Student's t with 49 degrees of freedom
    assert found.value == pytest.approx(values.mean().item())
    assert {type(number) for number in (found.value, found.low, found.high)} == {float}
    assert (found.low, found.high) == pytest.approx((found.value - spread, found.value + spread), rel=1e-4)
    total = estimate(simple_sample(), values, of="total")
    assert (total.value, total.low, total.high) == pytest.approx((500 * found.value, 500 * found.low, 500 * found.high))


def test_nothing_that_matches_is_bounded_by_the_rule_of_three():
    none = torch.zeros(50, dtype=torch.bool)
    found = estimate(simple_sample(), 1.0, none, of="total")
    assert (found.value, found.low, found.high, found.rows) == (0, 0, 30, 0)
    assert estimate(simple_sample(), -2.0, none, of="total").low == -60
    unknown = estimate(simple_sample(), 1.0, none)
    assert math.isnan(unknown.value) and (unknown.low, unknown.high) == (-math.inf, math.inf)


def test_the_mean_of_one_row_has_no_known_error():
    one = torch.arange(50) == 7
    found = estimate(simple_sample(), torch.arange(50.0), one)
    assert (found.value, found.low, found.high, found.rows) == (7, -math.inf, math.inf, 1)


def test_values_of_the_wrong_length_are_refused():
    with pytest.raises(ValueError, match=r"`values` has shape \(500,\); expected a value for each of the 50"):
        estimate(simple_sample(), torch.zeros(500))
    with pytest.raises(TypeError, match="`where` must be bool"):
        estimate(simple_sample(), 1.0, torch.ones(50))
    with pytest.raises(ValueError, match="'mean' or 'total', not 'sum'"):
        estimate(simple_sample(), 1.0, of="sum")  # type: ignore[arg-type]


@pytest.mark.parametrize("least", [0, 15])
def test_intervals_hold_the_truth_about_as_often_as_they_claim(least):
    """95 %; paired strata make them somewhat wide, skewed values somewhat narrow."""
    features, values = population()
    matching = {"all": np.ones(6000, bool), "rare": features["country"] >= 5, "noise": features["noise"] == 2}
    held: dict[tuple[str, str], list[bool]] = {}
    for seed in range(200):
        sample = stratified_sample(
            features, 400, seed=seed, segments=["country"] if least else [], min_per_segment=least
        )
        rows = sample.rows.numpy()
        for name, where in matching.items():
            for of, truth in (("mean", values[where].mean()), ("total", values[where].sum())):
                found = estimate(sample, values[rows], where[rows], of=of)
                held.setdefault((name, of), []).append(found.low <= truth <= found.high)
    shares = {key: float(np.mean(hits)) for key, hits in held.items()}
    print(f"\nintervals that hold the truth, min_per_segment={least}: {shares}")
    assert min(shares.values()) >= 0.9
    assert np.mean(list(shares.values())) >= 0.93


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
