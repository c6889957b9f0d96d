"""Estimates where users were drawn, each with all rows: a user is in the sample with chance 1 / w, by its key.

All rows of the population are known, and a user's share in what is asked goes with its rows, so the estimate is a
regression on them (Särndal et al. 1992, 6.4): with t what a user has of it and r its rows,
    sum w t + b (R - sum w r), b = sum t r / sum r^2, variance w (w - 1) sum e^2.
e is how far a user is from what the others say of it, so that one who has many of the rows does not hide.

A few users may have most of the rows, and e says little where none of them happens to match. Whether a user's rows
match together is seen in all others, as the correlation c within a user; with it, and p the share of rows that match,
    sum e^2 is expected to be p (1 - p) sum (r + c r (r - 1)),
and the larger of the two is believed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from examples.audience.reach.answer import Answer, Groups, Reach, away, bounded, missed, whole
from examples.audience.reach.measures import Spread
from loka_compile.sampling.intervals import student


@dataclass(frozen=True, eq=False)
class _Regressed:
    """value; variance; beside: users that stand behind one; rows [U]: of each user; part [U]: its own of it."""

    value: float
    variance: float
    beside: float
    rows: np.ndarray
    part: np.ndarray


def count(answer: Answer, groups: Groups, users: bool, answered: float = 1.0) -> Reach:
    """How many rows match, or how many users have one that does. `answered`: a share of the users."""
    found = _regressed(answer.sums[:, 0], answer, groups, answered)
    seen, drawn, rows = float(found.part.sum()), float(found.rows.sum()), answer.rows
    most = groups.population - drawn + seen  # what was seen is there, and so is what was seen not to match
    value = min(max(found.value, seen), most)
    if len(found.rows) < 2 and found.beside:
        return whole(Reach(value, seen, most, rows, answered))
    if users:
        p, variance, size = seen / max(1, len(found.rows)), found.variance, 1.0
        up, down = 1 - p, p
    else:
        p = value / groups.population
        together, size = _together(found, p)
        variance = max(found.variance, together)
        up, down = max(0.0, 1 - 2 * p), max(0.0, 2 * p - 1)
    low = max(seen, value - away(variance, found.beside * size * down))
    high = min(most, value + away(variance, found.beside * size * up))
    return whole(Reach(value, low, high, rows, answered))


def total(answer: Answer, groups: Groups, spread: Spread, answered: float = 1.0) -> Reach:
    """The sum of the values of all rows that match. spread: of the measure in the whole population."""
    found = _regressed(answer.sums[:, 1], answer, groups, answered)
    if len(found.rows) < 2 and found.beside:
        return bounded(Reach(found.value, -math.inf, math.inf, answer.rows, answered), groups, spread)
    counted = _regressed(answer.sums[:, 0], answer, groups, answered)
    p = min(1.0, max(0.0, counted.value / groups.population))
    middle = abs(float(found.part.sum())) / max(1.0, float(counted.part.sum()))
    together, size = _together(counted, p)
    variance, size = max(found.variance, middle**2 * together), max(middle * size, _size(found, spread))
    z = student(max(1, len(answer.groups) - 1))
    jump, above, below = found.beside * size, spread.high > 0, spread.low < 0
    low = found.value - away(variance, jump * (1.0 if below else p), z)
    high = found.value + away(variance, jump * (1.0 if above else p), z)
    return bounded(Reach(found.value, low, high, answer.rows, answered), groups, spread)


def mean(answer: Answer, groups: Groups, spread: Spread, answered: float = 1.0) -> Reach:
    """The mean of the values of all rows that match; NaN where none does."""
    beside = missed(groups, answered)
    if answer.rows == 0:
        return Reach(math.nan, *((spread.low, spread.high) if beside else (math.nan, math.nan)), 0, answered)
    rows, values = answer.sums[:, :2].T / groups.heaviest
    value, low, high = float(values.sum() / rows.sum()), spread.low, spread.high
    users = len(rows)
    if users > 1 or not beside:  # the spread of one user is unknown
        error = (values - value * rows) / (1 - np.minimum(rows / rows.sum(), 0.99))
        weight = beside + 1
        variance = weight * beside * float((error**2).sum()) / (weight * rows.sum()) ** 2
        jump = beside / (weight * float(rows.sum())) * _typical(rows) * spread.away
        z = student(max(1, users - 1))
        low, high = max(low, value - away(variance, jump, z)), min(high, value + away(variance, jump, z))
    return Reach(value, min(low, value), max(high, value), answer.rows, answered)


def _regressed(sums: np.ndarray, answer: Answer, groups: Groups, answered: float) -> _Regressed:
    """sums [M]: weight times what the users of the answer have."""
    there = np.flatnonzero(groups.rows)
    rows = groups.rows[there].astype(float)
    part = np.zeros(len(groups.rows))
    part[answer.groups] = sums / groups.heaviest
    part = part[there]
    beside = missed(groups, answered)
    squares = max(float((rows**2).sum()), 1e-300)
    slope = float((part * rows).sum()) / squares
    value = (beside + 1) * float(part.sum()) + slope * (groups.population - (beside + 1) * float(rows.sum()))
    error = (part - slope * rows) / (1 - np.minimum(rows**2 / squares, 0.99))
    variance = (beside + 1) * beside * float((error**2).sum())
    return _Regressed(value if beside else float(part.sum()), variance, beside, rows, part)


def _together(found: _Regressed, p: float) -> tuple[float, float]:
    """The variance of a count if rows match as much together as those of all users do, and the rows of the next user
    who matches. As long as few users match, they do so with all their rows."""
    rows, part = found.rows, found.part
    several, users = rows > 1, int(np.count_nonzero(part))
    r, x = rows[several], part[several]
    share = float((x / r).mean()) if len(r) else 0.0
    apart = float((2 * x * (r - x) / (r * (r - 1))).mean()) if len(r) else 0.0
    same = 1 - apart / (2 * share * (1 - share)) if 0 < share < 1 else 1.0
    same = (min(max(same, 0.0), 1.0) * users + 1) / (users + 1)
    expected = p * (1 - p) * float((rows + same * rows * (rows - 1)).sum())
    next_ = 1 + same * (_typical(rows) - 1)
    return (found.beside + 1) * found.beside * expected, next_


def _size(found: _Regressed, spread: Spread) -> float:
    """Of the next user's part: as those who have one, and while these are few, as all users may have it."""
    like, most = _typical(np.abs(found.part)), _typical(found.rows) * spread.jump
    return like + max(0.0, most - like) / (np.count_nonzero(found.part) + 1)


def _typical(parts: np.ndarray) -> float:
    """Of whose parts the squares are made."""
    return float((parts**3).sum() / max((parts**2).sum(), 1e-300))
