"""Strata of a population, and what features outside of the cover add up to over them.

Strata that differ in nothing a question depends on count as one: usually few of very many. A feature outside of the
cover depends on some of the cover's, so the features are summed out one after the other, and what those left do not
depend on is told apart no longer (variable elimination: Koller and Friedman 2009, section 9.3).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

CELL = "the cell of the cover's criteria"
"""A column beside those of features."""


@dataclass(frozen=True, eq=False)
class Strata:
    """codes: feature of the cover -> its code in each stratum, [S]; counts [S]: rows of each."""

    codes: Mapping[str, np.ndarray]
    counts: np.ndarray


@dataclass(frozen=True, eq=False)
class Share:
    """Of a feature's criteria, the share of rows in each of their cells, by the codes of what the feature depends on.
    of [sizes of `given`, cells]."""

    given: tuple[str, ...]
    of: np.ndarray


def joined(strata: Strata, shape: Sequence[int]) -> Strata:
    """Those with equal codes as one, where there may be fewer. shape: how many codes each feature has."""
    rows, codes = _summed(strata.counts[None], strata.codes, shape)
    return Strata(codes, rows[0])


def summed_out(
    strata: Strata, shares: Mapping[str, Share], sizes: Mapping[str, int], cell: np.ndarray, cells: int
) -> tuple[np.ndarray, list[str]]:
    """Rows by cells of the features' criteria and of the cover's, [product of the features' cells, cells].

    sizes: how many codes each feature of the cover has. cell [S]: of the cover's criteria, below `cells`. Also returns
    the features in the order of the first dimension, the slowest first.
    """
    left, order = dict(shares), []
    columns: dict[str, np.ndarray] = {**strata.codes, CELL: cell}
    sizes = {**sizes, CELL: cells}
    rows = strata.counts.astype(float)[None]  # [cells so far, what is told apart]
    while left:
        needed = {name: _needed(own for other, own in left.items() if other != name) for name in left}
        name = min(left, key=lambda name: math.prod(sizes[each] for each in needed[name]))
        share, keep = left.pop(name), needed[name]
        place = numbered([columns[each] for each in share.given], share.of.shape, rows.shape[1])
        own = np.ascontiguousarray(share.of.reshape(-1, share.of.shape[-1]).T)
        rows = (rows[:, None] * own[:, place]).reshape(-1, rows.shape[1])
        rows, columns = _summed(rows, {each: columns[each] for each in keep}, [sizes[each] for each in keep])
        order.append(name)
    return rows @ (columns[CELL][:, None] == np.arange(cells)).astype(float), order


def _needed(shares: Iterable[Share]) -> tuple[str, ...]:
    """The columns that the shares and the cover's criteria depend on."""
    return *sorted({name for own in shares for name in own.given}), CELL


def _summed(
    rows: np.ndarray, columns: Mapping[str, np.ndarray], shape: Sequence[int]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Rows [cells, R] with those as one that are the same in all columns, where there may be fewer of them."""
    size = math.prod(shape)
    if size > rows.shape[1]:
        return rows, dict(columns)
    number = numbered(columns.values(), shape, rows.shape[1])
    rows = np.stack([np.bincount(number, own, size) for own in rows])
    there = np.flatnonzero(rows.any(0))
    codes = np.unravel_index(there, shape) if shape else ()
    return rows[:, there], dict(zip(columns, codes, strict=True))


def numbered(columns: Iterable[np.ndarray], shape: Sequence[int], count: int) -> np.ndarray:
    """The place of each combination of codes in a table of that shape, flattened. [count] int64."""
    number = np.zeros(count, np.int64)
    for column, size in zip(columns, shape, strict=False):
        number *= size
        number += column
    return number


def compact(strata: np.ndarray) -> np.ndarray:
    """In as few bytes as the codes fit in, a feature after the other."""
    return np.asfortranarray(strata, np.min_scalar_type(int(strata.max(initial=0))))
