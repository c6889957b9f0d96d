"""How many will match on coming days: a weekly pattern times a trend, fitted to the days in the sample."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import date, timedelta

import numpy as np

from examples.audience.reach.answer import Reach, Z
from examples.audience.reach.estimator import Estimator, Question
from examples.audience.reach.query import And, In
from examples.audience.reach.schema import AudienceError, Value

LEAST_DAYS = 14
MAX_DAYS = 1000
"""That have rows."""
MOST_EMPTY = 14
"""Times as many days from the first to the last as there are with rows: a shop that opens every other week."""


@dataclass(frozen=True)
class Forecast:
    """past: day -> what the sample says; coming: day -> forecast. growth: by week, 0.02 is 2 %."""

    past: dict[date, Reach]
    coming: dict[date, Reach]
    growth: float


def forecast(estimator: Estimator, question: Question, day: str, days: int = 7) -> Forecast:
    """The question for each of the `days` after the last in the sample. day: the feature with days as `2026-11-29`, or
    with times of day after them; rows without a day are left out.

    log(count) = level + trend * day + weekday over the days with anybody, by least squares weighted by the days' own
    variances, times the share of such days among the weekday's. The interval of a coming day holds what is uncertain in
    the fit and what days scatter about it, and 0 where the weekday had days without anybody. A weekday that never had
    anybody is forecast as 0, up to what its days may have had.
    """
    if not 1 <= days <= 366:
        raise AudienceError(f"a forecast is for 1 to 366 days, not {days}")
    if question.of not in ("count", "users"):
        raise AudienceError(f"a forecast is of count or users, not of {question.of!r}")
    past = _past(estimator, question, day)
    first, last = min(past), max(past)
    if last > date.max - timedelta(days=days):
        raise AudienceError(f"the days of {day!r} end at {last}; there are no {days} days after it")
    seen = {when: reach for when, reach in past.items() if reach.value > 0}
    if len(seen) < LEAST_DAYS:
        raise AudienceError(
            f"anybody matches on only {len(seen)} days, fewer than {LEAST_DAYS}; ask for a wider audience"
        )
    y = np.log([reach.value for reach in seen.values()])
    ends = [(max(reach.low, reach.value / 100), reach.high) for reach in seen.values()]  # of a logarithm, as y is
    noise = np.array([max((math.log(high / low) / (2 * Z)) ** 2, 1e-12) for low, high in ends])
    x = _design(list(seen), first)
    scatter = 0.0
    for _ in range(20):  # the scatter of days about the pattern, beyond what sampling does
        weight = 1 / (noise + scatter)
        fitted, covariance = _solved(x, y, weight)
        left = y - x @ fitted
        free = len(y) - x.shape[1]
        scatter = max(0.0, float((left**2).sum() / max(free, 1) - noise.mean()))
    answered = next(iter(past.values())).answered
    coming = {}
    for when in (last + timedelta(days=i + 1) for i in range(days)):
        alike = [reach for other, reach in past.items() if other.weekday() == when.weekday()]
        there = sum(reach.value > 0 for reach in alike) / len(alike)
        if there == 0:
            coming[when] = Reach(0.0, 0.0, max(reach.high for reach in alike), 0, answered)
            continue
        row = _design([when], first)[0]
        level, spread = float(row @ fitted), Z * math.sqrt(float(row @ covariance @ row) + scatter)
        low = math.exp(level - spread) if there == 1 else 0.0
        coming[when] = Reach(there * math.exp(level), low, math.exp(level + spread), 0, answered)
    return Forecast(past, coming, math.exp(7 * float(fitted[1])) - 1)


def _past(estimator: Estimator, question: Question, feature: str) -> dict[date, Reach]:
    """Every day from the first to the last, those without a row as the zeros they are."""
    values: dict[date, list[Value]] = {}
    for value in estimator.schema.feature(feature).values:
        if value is not None:
            values.setdefault(_day(value, feature), []).append(value)
    if not LEAST_DAYS <= len(values) <= MAX_DAYS:
        raise AudienceError(
            f"a forecast takes at least {LEAST_DAYS} days, for a weekly pattern, and at most {MAX_DAYS}; "
            f"{feature!r} has {len(values)}"
        )
    first, last = min(values), max(values)
    span = (last - first).days + 1
    if span > MOST_EMPTY * len(values):
        raise AudienceError(
            f"{feature!r} goes from {first} to {last} with rows on only {len(values)} of {span:,} days; "
            "leave stray days out of the files"
        )
    asked = [replace(question, query=And((question.query, In(feature, tuple(own))))) for own in values.values()]
    found = dict(zip(values, estimator.batch(asked), strict=True))
    nobody = Reach(0.0, 0.0, 0.0, 0, next(iter(found.values())).answered)
    return {day: found.get(day, nobody) for day in (first + timedelta(days=i) for i in range(span))}


def _design(days: list[date], first: date) -> np.ndarray:
    """A column of ones, the day's number, and a column a weekday but the last."""
    rows = [[1.0, (day - first).days, *(float(day.weekday() == w) for w in range(6))] for day in days]
    return np.array(rows)


def _solved(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted least squares, and the covariance of its coefficients if weights are one over variances."""
    covariance = np.linalg.pinv(x.T @ (weight[:, None] * x))
    return covariance @ (x.T @ (weight * y)), covariance


def _day(value: object, feature: str) -> date:
    try:
        return date.fromisoformat(str(value)[:10])
    except ValueError:
        raise AudienceError(f"{feature!r} has no days: {value!r:.40} is not written as 2026-11-29") from None
