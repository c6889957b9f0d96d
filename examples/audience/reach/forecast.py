"""How many will match on coming days: a weekly pattern times a trend, fitted to the days in the sample."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import date, timedelta

import numpy as np

from examples.audience.reach.answer import Reach, Z
from examples.audience.reach.estimator import Estimator, Question
from examples.audience.reach.schema import AudienceError

LEAST_DAYS = 14


@dataclass(frozen=True)
class Forecast:
    """past: day -> what the sample says; coming: day -> forecast. growth: by week, 0.02 is 2 %."""

    past: dict[date, Reach]
    coming: dict[date, Reach]
    growth: float


def forecast(estimator: Estimator, question: Question, day: str, days: int = 7) -> Forecast:
    """The question for each of the `days` after the last in the sample. day: the feature with days as `2026-11-29`.

    log(count) = level + trend * day + weekday, by least squares weighted by the days' own variances. The interval of a
    coming day holds what is uncertain in the fit and what days scatter about it.
    """
    if not 1 <= days <= 366:
        raise AudienceError(f"a forecast is for 1 to 366 days, not {days}")
    if question.of not in ("count", "users"):
        raise AudienceError(f"a forecast is of count or users, not of {question.of!r}")
    found = {_day(value): reach for value, reach in estimator.group_by(question, day).items()}
    past = dict(sorted(found.items()))
    if len(past) < LEAST_DAYS:
        raise AudienceError(f"a weekly pattern takes at least {LEAST_DAYS} days; the sample has {len(past)}")
    seen = {when: reach for when, reach in past.items() if reach.rows and reach.value > 0}
    if len(seen) < LEAST_DAYS:
        raise AudienceError(f"only on {len(seen)} days anybody in the sample matches; ask for a wider audience")
    first = min(past)
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
    last = max(past)
    coming = {}
    for when in (last + timedelta(days=i + 1) for i in range(days)):
        row = _design([when], first)[0]
        level, spread = float(row @ fitted), Z * math.sqrt(float(row @ covariance @ row) + scatter)
        ends = math.exp(level), math.exp(level - spread), math.exp(level + spread)
        coming[when] = replace(next(iter(seen.values())), value=ends[0], low=ends[1], high=ends[2], rows=0)
    return Forecast(past, coming, math.exp(7 * float(fitted[1])) - 1)


def _design(days: list[date], first: date) -> np.ndarray:
    """A column of ones, the day's number, and a column a weekday but the last."""
    rows = [[1.0, (day - first).days, *(float(day.weekday() == w) for w in range(6))] for day in days]
    return np.array(rows)


def _solved(x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted least squares, and the covariance of its coefficients if weights are one over variances."""
    covariance = np.linalg.pinv(x.T @ (weight[:, None] * x))
    return covariance @ (x.T @ (weight * y)), covariance


def _day(value: object) -> date:
    try:
        return date.fromisoformat(str(value)[:10])
    except ValueError:
        raise AudienceError(f"the day {value!r} is not written as 2026-11-29") from None
