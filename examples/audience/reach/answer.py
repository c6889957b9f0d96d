"""What a counter answers, sums by group that add up over counters, and the estimate with its interval made of them.

A row of weight w whose value is y adds w, w y, w^2, w^2 y and w^2 y^2 to its group: totals, means and their variances
follow from these five. Variances are those of stratified sampling with a finite population, in each group
(1 - n/N) n/(n-1) sum (w (u - mean u))^2 (Cochran 1977, 5.3); of users, drawn by their keys, (1 - 1/w) sum w^2 u^2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loka_compile.sampling.intervals import student

Z = 1.959963984540054
"""95 % of a normal distribution lie within so many standard deviations."""
ROUNDING = 1e-12
"""Of a sum of weights, relative to it: all rows may sum to a little less than the population."""


@dataclass(frozen=True, eq=False)
class Groups:
    """The groups of some shards. rows [G]: of the sample, and there; sizes [G]: of the population; squares [G]: sum of
    w^2 of those rows; heaviest: largest weight; population: all there are, rows or users. users: a group is a user."""

    rows: np.ndarray
    sizes: np.ndarray
    squares: np.ndarray
    heaviest: float
    population: float
    users: bool = False


@dataclass(frozen=True, eq=False)
class Answer:
    """groups [M]: those with matching rows, ascending; sums [M, 5]: see above; rows: of the sample that match."""

    groups: np.ndarray
    sums: np.ndarray
    rows: int


@dataclass(frozen=True)
class Reach:
    """value, low, high: with 95 %; rows: of the sample that match; answered: share of the sample that was asked."""

    value: float
    low: float
    high: float
    rows: int
    answered: float = 1.0


def added(answers: Sequence[Answer]) -> Answer:
    """The sums over all shards."""
    groups = np.concatenate([each.groups for each in answers])
    sums = np.concatenate([each.sums for each in answers])
    found, owner = np.unique(groups, return_inverse=True)
    total = np.stack([np.bincount(owner, column, len(found)) for column in sums.T], axis=1)
    return Answer(found, total, sum(each.rows for each in answers))


def count(answer: Answer, groups: Groups, answered: float = 1.0) -> Reach:
    """How many rows match. `groups` and `answer` are of the shards that answered, a share `answered` of all weights.

    Wilson's interval for the effective number of rows that the variance stands for, so that it neither falls below 0
    nor is empty where few match; if none match, at most 3 of the largest weight do (the rule of three).
    """
    scale, population = 1 / answered, groups.population
    value = scale * float(answer.sums[:, 0].sum())
    if answer.rows == 0:
        whole = answered == 1 and groups.heaviest <= 1
        return Reach(0.0, 0.0, 0.0 if whole else min(population, 3 * scale * groups.heaviest), 0, answered)
    variance = _variance(answer, groups, scale, (1.0, 0.0))
    if variance <= 0:
        return Reach(value, value, value, answer.rows, answered)
    share = min(value / population, 1.0)
    if share >= 1 - ROUNDING:
        half = Z * math.sqrt(variance)
        return Reach(value, max(0.0, value - half), value + half, answer.rows, answered)
    effective = share * (1 - share) / (variance / population**2)
    middle = (share + Z**2 / (2 * effective)) / (1 + Z**2 / effective)
    spread = share * (1 - share) / effective + Z**2 / (4 * effective**2)
    half = Z * math.sqrt(spread) / (1 + Z**2 / effective)
    low, high = population * max(0.0, middle - half), population * min(1.0, middle + half)
    return Reach(value, min(low, value), max(high, value), answer.rows, answered)


def total(answer: Answer, groups: Groups, answered: float = 1.0) -> Reach:
    """The sum of the values of all rows that match."""
    scale = 1 / answered
    value = scale * float(answer.sums[:, 1].sum())
    if answer.rows == 0:
        return Reach(0.0, -math.inf, math.inf, 0, answered)
    half = student(max(1, answer.rows - 1)) * math.sqrt(max(0.0, _variance(answer, groups, scale, (0.0, 1.0))))
    return Reach(value, value - half, value + half, answer.rows, answered)


def mean(answer: Answer, groups: Groups, answered: float = 1.0) -> Reach:
    """The mean of the values of all rows that match, a ratio of two totals; NaN where none does.

    A handful of rows that all agree gives an interval that is too narrow: look at `rows`.
    """
    if answer.rows == 0:
        return Reach(math.nan, -math.inf, math.inf, 0, answered)
    matching, summed = answer.sums[:, 0].sum(), answer.sums[:, 1].sum()
    value = float(summed / matching)
    if answer.rows == 1 and (groups.heaviest > 1 or answered < 1):
        return Reach(value, -math.inf, math.inf, 1, answered)  # the spread of one row is unknown
    variance = _variance(answer, groups, 1 / answered, (-value, 1.0)) / (matching / answered) ** 2
    half = student(max(1, answer.rows - 1)) * math.sqrt(max(0.0, variance))
    return Reach(value, value - half, value + half, answer.rows, answered)


def _variance(answer: Answer, groups: Groups, scale: float, of: tuple[float, float]) -> float:
    """The variance of the total of u = a + b y over the matching rows; of = (a, b)."""
    a, b = of
    w, wy, w2, w2y, w2yy = answer.sums.T * np.array([scale, scale, scale**2, scale**2, scale**2])[:, None]
    first = a * w + b * wy
    if groups.users:
        weight = groups.heaviest * scale
        return float((1 - 1 / weight) * (first**2).sum())
    second, third = a * w2 + b * w2y, a * a * w2 + 2 * a * b * w2y + b * b * w2yy
    own, rows, sizes, squares = answer.groups, groups.rows, groups.sizes, groups.squares * scale**2
    if scale > 1:  # rows that were paired may be alone now
        own, rows, sizes, squares, (first, second, third) = _coarser(own, rows, sizes, squares, (first, second, third))
    n, size = rows[own].astype(float), sizes[own]
    middle = first / size
    around = third - 2 * middle * second + middle**2 * squares[own]
    unseen = np.maximum(0.0, 1 - n / size)
    return float((unseen * n / np.maximum(n - 1, 1) * np.maximum(around, 0)).sum())


def _coarser(
    own: np.ndarray, rows: np.ndarray, sizes: np.ndarray, squares: np.ndarray, columns: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """Groups joined with their neighbours until none that answered has a single row."""
    while len(rows) > 1 and (rows[rows > 0] < 2).any():
        into = np.minimum(np.arange(len(rows)) // 2, max(0, len(rows) // 2 - 1))
        rows, sizes, squares = (np.bincount(into, each) for each in (rows, sizes, squares))
        found, at = np.unique(into[own], return_inverse=True)
        own, columns = found, tuple(np.bincount(at, each, len(found)) for each in columns)
    return own, rows, sizes, squares, columns
