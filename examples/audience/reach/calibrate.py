"""The sample's cells, calibrated to what the whole population says.

A question of k criteria has 2^k cells. Many sums of them are known exactly (`known`), so only the counts of the other
sets of criteria are free: theta. They are found by weighted least squares, the sample's cells each with its variance as
drawn, and the model's prediction of each free count with its error (Deville and Särndal 1992 for calibration; the model
makes it a generalised difference estimator):
    sum over cells (x - s)^2 / v + sum over free sets (theta - m)^2 / e^2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from examples.audience.reach.answer import Reach, Z
from examples.audience.reach.formula import Formula, cells, of_trial, sums
from examples.audience.reach.model import DECADES, Expected, Model, by_decade

TURNS = 4
"""Of the least squares, as the sample's variances follow from the cells."""
STRETCHES = np.geomspace(0.6, 6, 60)
ROWS_TRIED = 5e7
"""Sampled rows that are looked at, over all trials, to learn how wide intervals have to be."""


@dataclass(frozen=True, eq=False)
class Cells:
    """Sampled rows by cell. weights [2^k]: sum of their weights; rows [2^k]: how many; squares: of all weights."""

    weights: np.ndarray
    rows: np.ndarray
    squares: float

    def __add__(self, other: Cells) -> Cells:
        return Cells(self.weights + other.weights, self.rows + other.rows, self.squares + other.squares)

    def __reduce__(self) -> tuple[Callable[..., Cells], tuple[bytes, bytes, float]]:
        """As bytes: to send two small arrays as arrays takes longer than to count."""
        return _cells, (self.weights.tobytes(), self.rows.tobytes(), self.squares)


def _cells(weights: bytes, rows: bytes, squares: float) -> Cells:
    return Cells(np.frombuffer(weights), np.frombuffer(rows, np.int64), squares)


def calibrated(asked: Formula, sampled: Cells, model: Model, answered: float = 1.0) -> Reach:
    """How many rows match. sampled: of the shards that answered, a share `answered` of all weights."""
    value, spread = solved(asked, model.expected(asked), sampled, model)
    rows = int(sampled.rows[asked.true].sum())
    if spread == 0:
        return Reach(value, value, value, rows, answered)
    return Reach(value, *around(value, spread, model), rows, answered)


def solved(asked: Formula, expected: Expected, sampled: Cells, model: Model) -> tuple[float, float]:
    """The rows in the cells that are asked for, and the standard deviation of that; 0 where they are known."""
    k = len(asked.atoms)
    free = np.isnan(expected.known)
    known = cells(k)[:, ~free] @ expected.known[~free]
    spanned = cells(k)[:, free]
    along = asked.true @ spanned  # what the answer owes to each free count
    if not along.any():
        return max(0.0, float(asked.true @ known)), 0.0
    total = float(sampled.weights.sum())
    seen = sampled.weights * (model.population / total)
    unseen = 1 - min(1.0, sampled.rows.sum() / model.population)
    of_a_row = sampled.squares / total * (model.population / total)
    predicted = (sums(k) @ expected.cells)[free]
    trust = 1 / model.error(predicted) ** 2
    x, empty = (expected.cells + seen) / 2, np.zeros(2**k, bool)
    for _ in range(TURNS):
        variance = max(unseen, 1e-9) * of_a_row * (np.maximum(x, 0) + of_a_row / 2)
        held = np.where(empty, 0.25, variance)  # no cell falls below 0
        wanted = np.where(empty, 0, seen) - known
        theta = np.linalg.solve(
            (spanned.T / held) @ spanned + np.diag(trust), spanned.T @ (wanted / held) + trust * predicted
        )
        x = known + spanned @ theta
        empty |= x < 0
    variance = max(unseen, 1e-9) * of_a_row * (np.maximum(x, 0) + of_a_row)  # an empty cell is no more certain for it
    precision = (spanned.T / variance) @ spanned + np.diag(trust)
    spread = float(np.sqrt(along @ np.linalg.solve(precision, along)))
    most = float(np.nanmin(expected.known)) if asked.true.sum() == 1 and asked.true[-1] else model.population
    return min(max(0.0, float(asked.true @ x)), most), spread


def interval(value: np.ndarray, spread: np.ndarray, population: float) -> tuple[np.ndarray, np.ndarray]:
    """95 %, outwards to whole rows. Few rows scatter as a gamma variable does (Wilson and Hilferty 1931)."""
    small = np.minimum(value, population - value)
    shape = np.maximum((small / np.maximum(spread, 1e-9)) ** 2, 0.05)
    ends = [small * np.maximum(0, 1 - 1 / (9 * shape) + z / (3 * np.sqrt(shape))) ** 3 for z in (-Z, Z)]
    ends[1] = np.maximum(ends[1], small + spread)
    low = np.where(value <= population / 2, ends[0], population - ends[1])
    high = np.where(value <= population / 2, ends[1], population - ends[0])
    return np.floor(np.maximum(low, 0) + 1e-6), np.ceil(np.minimum(high, population) - 1e-6)


def around(value: float, spread: float, model: Model) -> tuple[float, float]:
    """The counts that the answer leaves open, a decade of counts by its own stretch, and what lies between them.

    So 95 % hold whatever decade the truth is in (Vovk's label-conditional prediction): how wide an interval has to be
    is not what the answer's own decade says, where most truths are smaller or larger than the one in question.
    """
    ends = model.population * 10.0 ** -np.arange(DECADES + 1)
    least = np.where(np.arange(DECADES) < model.decade(np.array(0.0)), np.ceil(ends[1:]), 0)  # no row: the last decade
    low, high = interval(np.array(value), spread * model.stretch, model.population)
    low, high = np.maximum(low, least), np.minimum(high, np.floor(ends[:-1]))
    there = low <= high
    return (
        float(low[there].min(initial=np.floor(value + 1e-6))),
        float(high[there].max(initial=np.ceil(value - 1e-6))),
    )


def stretched(model: Model, expected: Sequence[Expected], sampled: Sequence[Cells], truth: np.ndarray) -> Model:
    """The model, with intervals as wide as they have to be to hold 95 % of the trials of every decade (split conformal
    prediction; decades of what is true).

    expected: what it says of each trial; sampled: what the sample does, of the first; truth: counted in full.
    """
    found = []
    for trial, known, own in zip(model.design.trials, expected, sampled, strict=False):
        found.append(solved(of_trial(trial), known, own, model))
    if not found:
        return model
    value, spread = np.array(found).T
    truth = truth[: len(value)]
    needed = np.full(len(value), STRETCHES[-1])
    for stretch in STRETCHES[::-1]:
        low, high = interval(value, spread * stretch, model.population)
        needed[(low <= truth) & (truth <= high)] = stretch
    return replace(model, stretch=by_decade(model.decade(truth), needed, _enough, 1.0))


def _enough(needed: np.ndarray) -> float:
    """What a further question needs no more than with 95 %, if it is drawn as these were."""
    return float(np.quantile(needed, min(1.0, 0.95 * (len(needed) + 1) / len(needed)), method="higher"))
