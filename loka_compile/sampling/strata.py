"""Which features to stratify rows on: a minimum vertex cover of the graph of their dependencies.

Outside a vertex cover no edge remains: given the cover's values all other features are independent of each other, so
within a stratum the joint distribution is a product of marginals, which a few rows estimate well. The cover is the
smallest such set. (Audience reach estimation, arXiv 1305.3014, US9524510B2. How the graph is learned is not published;
here pairwise mutual information with a chi-square cut, pruned by conditional mutual information.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations

import networkx as nx
import numpy as np
import torch
from networkx.algorithms.approximation import min_weighted_vertex_cover
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Codes = NDArray[np.int64]
"""(N,): the values of a feature, or the strata of a table, numbered from 0."""

PILOT_ROWS = 8192
LEVELS = 16  # values told apart when dependence is tested; the rarer ones of a feature count as one
SIGNIFICANCE = 1e-3
MIN_INFORMATION = 0.005  # nats: a weaker dependence is left to chance, however significant many rows make it
EXACT_FEATURES = 40  # graphs of that many take some 20 ms


def feature_table(features: Mapping[str, Tensor | ArrayLike]) -> dict[str, Codes]:
    """Checked (N,) columns whose values are numbered from 0, in their order."""
    table: dict[str, Codes] = {}
    for name, values in features.items():
        column = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
        if column.ndim != 1:
            raise ValueError(f"feature {name!r} has shape {column.shape}; expected one value a row")
        if column.size and column.dtype.kind not in "biu":
            raise TypeError(f"feature {name!r} is {column.dtype}, not integer; quantile_buckets() makes integers of it")
        if column.size and column.min() < 0:
            raise ValueError(f"feature {name!r} has negative values (the smallest is {column.min()})")
        table[name] = np.unique(column, return_inverse=True)[1].astype(np.int64)
    lengths = {name: len(column) for name, column in table.items()}
    if not any(lengths.values()):
        raise ValueError("the table of features is empty")
    if len(set(lengths.values())) > 1:
        raise ValueError(f"features of different lengths: {lengths}")
    return table


def quantile_buckets(values: Tensor | ArrayLike, buckets: int = LEVELS) -> Codes:
    """(N,) real numbers -> (N,) at most `buckets` codes of about equally many rows, equal numbers in one bucket.

    Where there are NaNs, they get one bucket more.
    """
    column = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else np.asarray(values, np.float64)
    known = column[~np.isnan(column)]
    if buckets < 1 or column.ndim != 1:
        raise ValueError(f"expected one value a row and at least one bucket, not {column.shape} and {buckets}")
    inner = np.linspace(0, 1, buckets + 1)[1:-1]
    edges = np.unique(np.quantile(known, inner, method="inverted_cdf")) if len(known) and len(inner) else np.empty(0)
    codes = np.searchsorted(edges, column, side="left")  # NaN sorts behind every edge, as does the last bucket
    return np.unique(np.where(np.isnan(column), buckets, codes), return_inverse=True)[1].astype(np.int64)


def combine(table: Mapping[str, Codes], names: tuple[str, ...], rows: int) -> Codes:
    """(rows,) code of each row's combination of values; the codes' order is lexicographic, the first name leading."""
    codes = np.zeros(rows, np.int64)
    for name in names:
        codes = np.unique(codes * (table[name].max() + 1) + table[name], return_inverse=True)[1]
    return codes


def dependency_graph(table: Mapping[str, Codes], rng: np.random.Generator) -> nx.Graph:
    """Features as nodes (weight: log of the cardinality), dependencies as edges (information: in nats).

    Learned on a uniform pilot sample. An edge goes when a common neighbour explains it, the weakest edges first.
    """
    rows = len(next(iter(table.values())))
    pilot = rng.choice(rows, PILOT_ROWS, replace=False) if rows > PILOT_ROWS else np.arange(rows)
    coarse = {name: _frequent(column[pilot]) for name, column in table.items()}
    graph = nx.Graph()
    for name, column in table.items():
        graph.add_node(name, weight=math.log(column.max() + 1))
    nothing = np.zeros(len(pilot), np.int64)
    for a, b in combinations(table, 2):
        if (nats := information(coarse[a], coarse[b], nothing)) > 0:
            graph.add_edge(a, b, information=nats)
    for a, b, _ in sorted(graph.edges(data="information"), key=lambda edge: edge[2]):
        if any(information(coarse[a], coarse[b], coarse[c]) == 0 for c in sorted(nx.common_neighbors(graph, a, b))):
            graph.remove_edge(a, b)
    return graph


def _frequent(column: Codes) -> Codes:
    """The LEVELS - 1 most frequent values, numbered; all others as one."""
    values, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
    rank = np.empty(len(values), np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(values))
    return np.minimum(rank, LEVELS - 1)[inverse]


def information(x: Codes, y: Codes, given: Codes) -> float:
    """I(x; y | given) in nats less its bias df / 2n; 0 where a G-test does not reject independence, or it is small.

    2n I is chi-square distributed with df degrees of freedom if x and y are independent given `given`. Only the values
    that occur beside a value of `given` count towards df.
    """
    shape = (given.max() + 1, x.max() + 1, y.max() + 1)
    counts = np.bincount(np.ravel_multi_index((given, x, y), shape), minlength=math.prod(shape)).reshape(shape)
    by_x, by_y, total = counts.sum(2), counts.sum(1), counts.sum((1, 2))
    z, i, j = counts.nonzero()
    seen = counts[z, i, j]
    nats = float((seen * np.log(seen * total[z] / (by_x[z, i] * by_y[z, j]))).sum()) / len(x)
    df = int((((by_x > 0).sum(1) - 1).clip(0) * ((by_y > 0).sum(1) - 1).clip(0)).sum())
    corrected = nats - df / (2 * len(x))
    if df == 0 or corrected < MIN_INFORMATION:
        return 0.0
    half = torch.tensor([df / 2, len(x) * nats], dtype=torch.float64)
    return corrected if torch.special.gammaincc(*half).item() < SIGNIFICANCE else 0.0


def vertex_cover(graph: nx.Graph) -> frozenset[str]:
    """A vertex cover of small `weight`: the smallest up to EXACT_FEATURES nodes with edges, else at most twice that."""
    if sum(degree > 0 for _, degree in graph.degree) <= EXACT_FEATURES:
        return _minimum_cover(graph)
    cover = set(min_weighted_vertex_cover(graph, weight="weight"))
    for node in sorted(cover, key=lambda node: (-graph.nodes[node]["weight"], node)):
        if cover.issuperset(graph[node]):  # its edges are all covered from the other end
            cover.remove(node)
    return frozenset(cover)


def _minimum_cover(graph: nx.Graph) -> frozenset[str]:
    """Branch and bound: the node with the most edges is in the cover, or all its neighbours are."""
    weights = dict(graph.nodes(data="weight"))
    best = frozenset(node for node, degree in graph.degree if degree)
    best_weight = sum(weights[node] for node in best)

    def search(rest: nx.Graph, chosen: frozenset[str], weight: float) -> None:
        nonlocal best, best_weight
        if weight + _cover_bound(rest, weights) >= best_weight * (1 - 1e-12):
            return
        node, degree = max(rest.degree, key=lambda item: item[1], default=("", 0))
        if degree == 0:
            best, best_weight = chosen, weight
            return
        for taken in ({node}, set(rest[node])):
            left = rest.copy()
            left.remove_nodes_from(taken)
            search(left, chosen | taken, weight + sum(weights[each] for each in taken))

    search(nx.Graph(graph.edges), frozenset(), 0.0)
    return best


def _cover_bound(graph: nx.Graph, weights: Mapping[str, float]) -> float:
    """No cover weighs less: edges pay for their ends, and no node is paid more than its weight (Bar-Yehuda & Even)."""
    left, paid = dict(weights), 0.0
    for a, b in graph.edges:
        price = min(left[a], left[b])
        left[a], left[b], paid = left[a] - price, left[b] - price, paid + price
    return paid


def by_importance(graph: nx.Graph, cover: frozenset[str]) -> tuple[str, ...]:
    """The cover, the feature that carries the most information about its neighbours first."""
    carried = {name: graph.degree(name, weight="information") for name in graph if name in cover}
    return tuple(sorted(carried, key=lambda name: -carried[name]))
