"""Qualities of predictions that are seen a part at a time and never held: what memory takes is a matter of the days
alone, not of the rows.

Sums give NE and calibration as they are. AUC is of logits in steps of 1/32 from -12 to 12: what lies within a step
counts as equal, one half.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

DAY = 24 * 3600
STEP, LIMIT = 1 / 32, 12
STEPS = round(2 * LIMIT / STEP)


@dataclass(frozen=True)
class Quality:
    """rows; rate: of positives; ne, auc: None where one of the two labels is missing; calibration: mean prediction over
    mean label. not_finite: rows whose prediction is no number; with any, the rest is None."""

    rows: int
    rate: float
    ne: float | None
    auc: float | None
    calibration: float | None
    not_finite: int = 0


@dataclass
class Tally:
    """Of some rows: how many, their sums, and counts of labels 0 and 1 by step of the logit. A label between 0 and 1
    counts in part as either."""

    rows: int = 0
    positive: float = 0.0
    predicted: float = 0.0
    loss: float = 0.0
    not_finite: int = 0
    counts: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, STEPS)))

    def add(self, logit: NDArray[Any], label: NDArray[Any]) -> None:
        z, y = logit.astype(np.float64), label.astype(np.float64)
        finite = np.isfinite(z)
        self.not_finite += int((~finite).sum())
        self.rows += len(z)
        self.positive += float(y.sum())
        z, y = z[finite], y[finite]
        self.predicted += float((1 / (1 + np.exp(-z))).sum())
        self.loss += float((np.logaddexp(0, z) - y * z).sum())
        step = np.clip(np.floor((z + LIMIT) / STEP), 0, STEPS - 1).astype(np.int64)
        for counts, weight in zip(self.counts, (1 - y, y), strict=True):
            counts += np.bincount(step, weight, STEPS)

    def merge(self, other: Tally) -> None:
        self.rows += other.rows
        self.positive += other.positive
        self.predicted += other.predicted
        self.loss += other.loss
        self.not_finite += other.not_finite
        self.counts += other.counts

    def quality(self) -> Quality:
        rate = self.positive / self.rows if self.rows else 0.0
        if self.not_finite:
            return Quality(self.rows, rate, None, None, None, self.not_finite)
        both = 0 < rate < 1
        entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)) if both else 0.0
        return Quality(
            self.rows,
            rate,
            self.loss / self.rows / entropy if both else None,
            self._auc() if both else None,
            self.predicted / self.positive if self.positive else None,
        )

    def _auc(self) -> float:
        down, up = self.counts
        below = np.cumsum(down) - down
        return float((up * (below + down / 2)).sum() / (up.sum() * down.sum()))


class Daily:
    """Tallies by day, counted from the day of `start`, in seconds, and their sum from day `skip` on."""

    def __init__(self, start: int, skip: int = 0) -> None:
        self.start, self.skip = start, skip
        self.days: dict[int, Tally] = {}

    def add(self, time: NDArray[Any], logit: NDArray[Any], label: NDArray[Any]) -> None:
        day = (time - self.start) // DAY
        for number in np.unique(day).tolist():
            rows = day == number
            self.days.setdefault(number, Tally()).add(logit[rows], label[rows])

    def total(self) -> Quality:
        whole = Tally()
        for number, tally in sorted(self.days.items()):
            if number >= self.skip:
                whole.merge(tally)
        return whole.quality()

    def by_day(self) -> dict[int, Quality]:
        return {number: tally.quality() for number, tally in sorted(self.days.items())}
