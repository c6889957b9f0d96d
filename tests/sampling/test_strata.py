"""Strata: which features depend on each other, and the vertex cover of least weight."""

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
from tests.sampling.population import population


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
