"""What a counter answers, sums by group that add up over counters, and the estimate with its interval made of them.

A row of weight w whose value is y adds w, w y, w^2, w^2 y and w^2 y^2 to its group: totals, means and their variances
follow from these five. Variances are those of stratified sampling with a finite population, in each group
(1 - n/N) n/(n-1) sum (w (u - mean u))^2 (Cochran 1977, 5.3). Of users, who are drawn by their keys: clusters.py.

A variance that is estimated from few rows is too small, and nothing where all rows of each group agree. So an end is
where the truth would have to be for the sample to be z standard deviations away, when every further row that the sample
missed adds its own jump B to the variance:
    d^2 = z^2 (V + B d).
Of a count that is Wilson's interval if B = (w - 1)(1 - 2 p), with nothing found or everything the rule of three.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from examples.audience.reach.measures import Spread
from loka_compile.sampling.intervals import student

Z = 1.959963984540054
"""95 % of a normal distribution lie within so many standard deviations."""
ALL = 1e-9
"""A weight that is larger than 1 by no more is 1: every row was drawn."""


@dataclass(frozen=True, eq=False)
class Groups:
    """The groups of some shards. rows [G]: of the sample, and there; sizes [G]: of the population; squares [G]: sum of
    w^2 of those rows; heaviest: largest weight; population: all rows there are. users: a group is a user."""

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


def away(variance: float, jump: float, z: float = Z) -> float:
    """How far from the estimate an end is: see above. jump: B. z: of the variance, larger than Z if few rows say it."""
    return (Z**2 * jump + math.sqrt((Z**2 * jump) ** 2 + 4 * z**2 * max(0.0, variance))) / 2


def missed(groups: Groups, answered: float) -> float:
    """Rows that stand behind a row of the sample beside itself; 0 where all were drawn."""
    beside = groups.heaviest / answered - 1
    return 0.0 if beside <= ALL else beside


def count(answer: Answer, groups: Groups, answered: float = 1.0) -> Reach:
    """How many rows match. `groups` and `answer` are of the shards that answered, a share `answered` of all weights."""
    value, population = float(answer.sums[:, 0].sum()) / answered, groups.population
    found = np.zeros(len(groups.rows))
    found[answer.groups] = answer.sums[:, 0] ** 2 / answer.sums[:, 2]  # rows, as weights of a group are alike
    drawn, beside = float(groups.rows.sum()), missed(groups, answered)
    variance = _variance(answer, groups, 1 / answered, (1.0, 0.0))
    up, down = _leaning(found, groups.rows.astype(float))
    least, most = float(answer.rows), population - (drawn - answer.rows)  # what was seen is there
    low = max(least, value - away(variance, beside * down))
    high = min(most, value + away(variance, beside * up))
    return whole(Reach(value, low, high, answer.rows, answered))


def share(answer: Answer, groups: Groups, answered: float = 1.0) -> Reach:
    """Of the rows that `answer` has, the share whose value is 1; the others' is 0. 0 to 1 where there are none."""
    weights, ones, squares, _, square_ones = answer.sums.T
    if answer.rows == 0:
        return Reach(0.0, 0.0, 1.0, 0, answered)
    value = float(ones.sum() / weights.sum())
    matching = ones**2 / np.maximum(square_ones, 1e-300)
    jump = missed(groups, answered) / (weights.sum() / answered)
    variance = _variance(answer, groups, 1 / answered, (-value, 1.0)) / (weights.sum() / answered) ** 2
    up, down = _leaning(matching, weights**2 / squares)
    ends = value - away(variance, jump * down), value + away(variance, jump * up)
    return Reach(value, max(0.0, ends[0]), min(1.0, ends[1]), round(float(matching.sum())), answered)


def whole(found: Reach) -> Reach:
    """Ends outwards to whole rows, and none beyond the estimate."""
    low, high = math.floor(found.low + 1e-6), math.ceil(found.high - 1e-6)
    return Reach(found.value, min(low, found.value), max(high, found.value), found.rows, found.answered)


def _leaning(matching: np.ndarray, rows: np.ndarray) -> tuple[float, float]:
    """By how much of its jump a further row adds to the variance, upwards and downwards: 1 - 2 p and 2 p - 1.

    p is what a group's other rows say: above, for a row that does not match, below, for one that does. Where all rows
    of every group agree, both ways are open. A row that is alone in its group is spoken for by all.
    """
    there, matching = rows > 0, np.clip(matching, 0, rows)
    matching, rows = matching[there], rows[there]
    other, others = rows - matching, np.maximum(rows - 1, 1e-9)
    alone, p = rows < 1.5, matching.sum() / max(rows.sum(), 1e-9)
    match_match = (matching * np.where(alone, p, np.maximum(matching - 1, 0) / others)).sum()
    other_other = (other * np.where(alone, 1 - p, np.maximum(other - 1, 0) / others)).sum()
    up = 2 * other_other / other.sum() - 1 if other.sum() > 1e-6 else 0.0
    down = 2 * match_match / matching.sum() - 1 if matching.sum() > 1e-6 else 0.0
    return float(up), float(down)


def total(answer: Answer, groups: Groups, spread: Spread, answered: float = 1.0) -> Reach:
    """The sum of the values of all rows that match. spread: of the measure in the whole population."""
    value = float(answer.sums[:, 1].sum()) / answered
    beside, jump = missed(groups, answered), spread.jump
    variance, z = _variance(answer, groups, 1 / answered, (0.0, 1.0)), student(max(1, answer.rows - 1))
    found = np.zeros(len(groups.rows))
    found[answer.groups] = answer.sums[:, 0] ** 2 / answer.sums[:, 2]
    up, down = (max(0.0, each) for each in _leaning(found, groups.rows.astype(float)))
    above, below = min(max(spread.high, 0.0), jump), min(max(-spread.low, 0.0), jump)
    up, down = max(above, jump * down * (below > 0)), max(below, jump * down * (above > 0))
    low, high = value - away(variance, beside * down, z), value + away(variance, beside * up, z)
    if beside and groups.rows.sum() < 2:
        low, high = -math.inf, math.inf  # the spread of one row is unknown
    return bounded(Reach(value, low, high, answer.rows, answered), groups, spread)


def bounded(found: Reach, groups: Groups, spread: Spread) -> Reach:
    """A total within what all rows of the population could have."""
    low, high = groups.population * min(spread.low, 0.0), groups.population * max(spread.high, 0.0)
    if spread.low >= 0:
        high = min(high, spread.powers[0] * (1 + 1e-9))
    if spread.high <= 0:
        low = max(low, spread.powers[0] * (1 + 1e-9))
    return Reach(
        found.value,
        min(max(found.low, low), found.value),
        max(min(found.high, high), found.value),
        found.rows,
        found.answered,
    )


def mean(answer: Answer, groups: Groups, spread: Spread, answered: float = 1.0) -> Reach:
    """The mean of the values of all rows that match, a ratio of two totals; NaN where none does."""
    beside = missed(groups, answered)
    if answer.rows == 0:
        ends = (spread.low, spread.high) if beside else (math.nan, math.nan)
        return Reach(math.nan, *ends, 0, answered)
    matching = float(answer.sums[:, 0].sum()) / answered
    value = float(answer.sums[:, 1].sum()) / answered / matching
    low, high = spread.low, spread.high
    if answer.rows > 1 or not beside:  # the spread of one row is unknown
        variance = _variance(answer, groups, 1 / answered, (-value, 1.0)) / matching**2
        z, row = student(max(1, answer.rows - 1)), beside / matching
        low = max(low, value - away(variance, row * min(max(0.0, value - low), spread.away), z))
        high = min(high, value + away(variance, row * min(max(0.0, high - value), spread.away), z))
    return Reach(value, min(low, value), max(high, value), answer.rows, answered)


def _variance(answer: Answer, groups: Groups, scale: float, of: tuple[float, float]) -> float:
    """The variance of the total of u = a + b y over the matching rows; of = (a, b)."""
    a, b = of
    w, wy, w2, w2y, w2yy = answer.sums.T * np.array([scale, scale, scale**2, scale**2, scale**2])[:, None]
    first = a * w + b * wy
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
