"""Pairs and triples are counted as the rows say, and only as many as fit."""

import networkx as nx
import numpy as np
import pytest

from examples.audience.reach import margins
from examples.audience.reach.schema import Feature, Schema

SIZES = {"a": 2, "b": 3, "c": 20, "d": 2}
SCHEMA = Schema(tuple(Feature(name, tuple(range(size))) for name, size in SIZES.items()))


def graph(*edges):
    made = nx.Graph()
    made.add_nodes_from(SIZES)
    made.add_weighted_edges_from(edges, weight="information")
    return made


def test_counts_are_those_of_the_rows():
    rng = np.random.default_rng(0)
    codes = {name: rng.integers(-1, size, 1001).astype(np.int32) for name, size in SIZES.items()}
    groups = margins.margins(SCHEMA, graph())
    assert len(groups) == 6 + 4
    tables = {names: np.zeros([SIZES[name] + 1 for name in names], np.int64) for names in (*groups, ("c",))}
    margins.count(codes, tables)
    margins.count({name: column[:7] for name, column in codes.items()}, tables)  # a second row group
    for names, table in tables.items():
        expected = np.zeros_like(table)
        for row in [*range(1001), *range(7)]:
            expected[tuple(codes[name][row] for name in names)] += 1  # -1 is the last place
        assert (table == expected).all(), names


def test_what_depends_on_each_other_comes_first(monkeypatch):
    monkeypatch.setattr(margins, "MAX_PLACES", 3 * 4 + 3 * 3 + 4 * 3 + 3 * 4 * 3)  # three pairs without c, and a triple
    groups = margins.margins(SCHEMA, graph(("b", "c", 0.5), ("a", "d", 0.1)))
    assert groups[0] == ("a", "d")  # b and c have 4 * 21 combinations: too many
    assert ("b", "c") not in groups and groups[-1] == ("a", "b", "d")


@pytest.mark.parametrize("most", [10, 100])
def test_no_more_than_fits(most, monkeypatch):
    monkeypatch.setattr(margins, "MAX_PLACES", most)
    groups = margins.margins(SCHEMA, graph())
    assert sum(np.prod([SIZES[name] + 1 for name in names]) for names in groups) <= most
