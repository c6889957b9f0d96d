"""Which features are counted together in full while the files are read, and the counting.

Pairs and triples of features have few combinations, so all their counts fit where the sample does: up to MAX_PLACES
numbers. Triples of features that depend on each other come first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from examples.audience.reach.schema import Schema
from examples.audience.reach.strata import numbered

if TYPE_CHECKING:  # counters start without it
    import networkx as nx

Names = tuple[str, ...]
MAX_PLACES = 2**20
"""Counts in all tables together: 8 MB in memory."""
MAX_TABLE = 2**17
"""Counts in one table: two features of 300 values each fit, as the origin and the destination of a flight."""
FEW = 256
"""Combinations up to which bitmaps are faster than numbering every row's combination."""


def margins(schema: Schema, graph: nx.Graph) -> tuple[Names, ...]:
    """Pairs and triples of features, each in the schema's order. graph: with the edges' `information`."""
    names = [each.name for each in schema.features]
    strength = {frozenset(edge[:2]): edge[2] for edge in graph.edges(data="information")}

    def closeness(group: Names) -> tuple[int, float]:
        found = [strength[pair] for pair in map(frozenset, combinations(group, 2)) if pair in strength]
        return -len(found), -sum(found)

    wanted = [group for size in (2, 3) for group in sorted(combinations(names, size), key=closeness)]
    return fitting(wanted, schema)


def fitting(wanted: Sequence[Names], schema: Schema) -> tuple[Names, ...]:
    """The groups that are counted, the first of them first, while there is room."""
    places = {each.name: len(each.values) + 1 for each in schema.features}
    chosen: list[Names] = []
    left = MAX_PLACES
    for group in wanted:
        held = math.prod(places[name] for name in group)
        if held <= min(left, MAX_TABLE):
            chosen.append(group)
            left -= held
    return tuple(chosen)


def count(codes: Mapping[str, np.ndarray], tables: Mapping[Names, np.ndarray]) -> None:
    """Add rows to the tables. codes [N] by feature; what a feature does not list is -1 and has the last place."""
    bitmaps: dict[str, np.ndarray] = {}
    rows = len(next(iter(codes.values()), ()))
    for names, table in tables.items():
        if table.size > FEW:
            table += _counted([codes[name] for name in names], table.shape)
            continue
        for name, size in zip(names, table.shape, strict=True):
            if name not in bitmaps:
                bitmaps[name] = _bitmaps(codes[name], size, rows)
        table += _popcounts([bitmaps[name] for name in names]).reshape(table.shape)


def _counted(columns: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    placed = (np.where(column < 0, size - 1, column) for column, size in zip(columns, shape, strict=True))
    cells = numbered(placed, shape, len(columns[0]))
    return np.bincount(cells, minlength=int(np.prod(shape))).reshape(shape)


def _bitmaps(column: np.ndarray, size: int, rows: int) -> np.ndarray:
    """[size, words] uint64, a bit a row."""
    column = np.where(column < 0, size - 1, column)
    there = np.zeros((size, rows + -rows % 64), bool)
    there[:, :rows] = column == np.arange(size)[:, None]
    return np.packbits(there, axis=1).view(np.uint64)


def _popcounts(bitmaps: Sequence[np.ndarray]) -> np.ndarray:
    """How many rows are in every combination of one bitmap a feature."""
    if len(bitmaps) == 1:
        return np.bitwise_count(bitmaps[0]).sum(1, dtype=np.int64)
    found = []
    for own in bitmaps[0]:
        narrowed = bitmaps[1] & own
        found.append(_popcounts([narrowed, *bitmaps[2:]]))
    return np.concatenate([each.ravel() for each in found])
