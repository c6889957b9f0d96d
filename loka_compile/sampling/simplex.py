"""What source_quality.py stands on: campaigns, intervals by bootstrap, small convex problems over simplices.

Letters: B problems, solved all at once, C campaigns, T tags, L categories (T = L + 1, as tag 0 is none). A stack of Q
is [B, T, L] with every Q[b, a] on the simplex.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


SUM_TOLERANCE = 0.01 + 1e-9
"""Shares may miss 1 by this much, as reports are rounded to whole percents; they are then scaled to 1."""


@dataclass(frozen=True)
class Bootstrap:
    """Percentile intervals from `resamples` draws, with replacement, of campaigns (or of rows, in `assess`)."""

    resamples: int = 200
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 1 or not 0 < self.level < 1:
            raise ValueError(f"a bootstrap has at least 1 resample and a level between 0 and 1; got {self}")


BOOTSTRAP = Bootstrap()


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True, eq=False)
class Campaigns:
    """mixes [C, K + 1]: share of each tag; reports [C, K]: share of each true category; sizes [C]: users."""

    mixes: Array
    reports: Array
    sizes: Array

    @classmethod
    def of(cls, counts: ArrayLike, reports: ArrayLike, sizes: ArrayLike | None = None) -> Campaigns:
        """counts [C, K + 1]: users by tag; sizes [C]: users each report rests on, by default the sum of the counts."""
        n, r = np.asarray(counts, float), np.asarray(reports, float)
        if n.ndim != 2 or r.ndim != 2 or len(n) != len(r) or n.shape[1] != r.shape[1] + 1 or r.shape[1] < 2:
            raise ValueError(f"counts must be [C, K + 1] and reports [C, K], K >= 2; got {n.shape} and {r.shape}")
        if len(n) == 0:
            raise ValueError("no campaigns")
        size = n.sum(1) if sizes is None else np.asarray(sizes, float)
        if size.shape != (len(n),):
            raise ValueError(f"sizes must be [{len(n)}], one a campaign; got {size.shape}")
        for name, array in (("counts", n), ("reports", r), ("sizes", size)):
            if not np.isfinite(array).all() or (array < 0).any():
                where = np.argwhere(~(np.isfinite(array) & (array >= 0)))[0].tolist()
                raise ValueError(f"{name}{where} is {array[tuple(where)]:g}; it must be finite and not negative")
        empty = np.flatnonzero((n.sum(1) == 0) | (size == 0))
        if len(empty):
            raise ValueError(f"campaign {empty[0]} reached nobody")
        off = np.flatnonzero(np.abs(r.sum(1) - 1) > SUM_TOLERANCE)
        if len(off):
            raise ValueError(f"the shares reported for campaign {off[0]} sum to {r[off[0]].sum():g}, not 1")
        if n[:, 1:].sum() == 0:
            raise ValueError("no user has a tag: there is nothing to judge")
        return cls(n / n.sum(1, keepdims=True), r / r.sum(1, keepdims=True), size)


def project(x: Array) -> Array:
    """The nearest point of the simplex to each x[..., :], exactly (Held et al. 1974; Duchi et al. 2008, by sorting)."""
    descending = -np.sort(-x, axis=-1)
    shift = (np.cumsum(descending, axis=-1) - 1) / np.arange(1, x.shape[-1] + 1)
    kept = np.count_nonzero(descending > shift, axis=-1, keepdims=True)
    return np.maximum(x - np.take_along_axis(shift, kept - 1, axis=-1), 0)


def least_squares(gram: Array, cross: Array, start: Array, tolerance: float = 1e-9, iterations: int = 5000) -> Array:
    """argmin over Q of tr(Q' gram Q) / 2 - tr(Q' cross), rows on the simplex.

    gram: [B, T, T], positive semidefinite; cross, start: [B, T, L]. FISTA (Beck and Teboulle 2009) with restarts
    (O'Donoghue and Candes 2015); stops once no entry of any Q moves by more than `tolerance`.
    """
    step = 1 / np.linalg.eigvalsh(gram)[:, -1, None, None]
    q, ahead, momentum = start, start, np.ones((len(start), 1, 1))
    for _ in range(iterations):
        new = project(ahead - step * (gram @ ahead - cross))
        moved = new - q
        momentum[((ahead - new) * moved).sum((1, 2)) > 0] = 1
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead, q, momentum = new + (momentum - 1) / following * moved, new, following
        if np.abs(moved).max() <= tolerance:
            break
    return q


def fit_margins(
    mixes: Array, reports: Array, q: Array, rows: Array, used: NDArray[np.bool_], iterations: int = 50
) -> tuple[Array, Array]:
    """Scales of the table nearest in KL to mixes[k, a] Q[a, c] whose margins are mixes[k, :] and reports[k, :].

    Iterative proportional fitting (Deming and Stephan 1940). mixes: [C, T]; reports: [C, L]; q: [B, T, L];
    rows: [B, C, T], where to start; used: [B, C], the campaigns to fit, as Q may rule others out. Gives rows [B, C, T]
    and columns [B, C, L]: the table is mixes * Q * rows * columns, its row sums exact. Its KL divergence is
    sum mixes log rows + sum reports log columns.
    """
    transposed = q.transpose(0, 2, 1)
    for _ in range(iterations):
        columns = _ratio(reports, (mixes * rows) @ q)
        sums = columns @ transposed
        error = np.abs(mixes * (rows * sums - 1) * used[:, :, None]).max()
        rows = np.where(used[:, :, None], _ratio(np.ones_like(rows), sums), 1)
        if error <= 1e-6:
            break
    return rows, columns


def likeliest(
    mixes: Array, reports: Array, weights: Array, start: Array, tolerance: float, iterations: int
) -> tuple[Array, list[float], int]:
    """For each weighting b of the campaigns, the Q of least sum_k weights[b, k] KL(table_k | mixes_k times Q).

    table_k is any table with campaign k's two margins. Alternates the best tables (E) and the best Q (M).
    mixes: [C, T]; reports: [C, L]; weights: [B, C], rows summing to 1; start: [T, L], positive. Gives Q [B, T, L],
    minus the objective of problem 0 by iteration, and how many problems moved by more than `tolerance` at the end.
    """
    q = np.repeat(start[None], len(weights), axis=0)
    rows, tags, trace = np.ones((*weights.shape, len(start))), weights @ mixes, []
    active = np.arange(len(weights))  # the problems that still move
    for _ in range(iterations):
        rows[active], columns = fit_margins(mixes, reports, q[active], rows[active], weights[active] > 0)
        if active[0] == 0:
            trace.append(-float(weights[0] @ (xlogy(mixes, rows[0]) + xlogy(reports, columns[0]))))
        scaled = weights[active, :, None] * mixes * rows[active]
        mass = q[active] * (scaled.transpose(0, 2, 1) @ columns)
        total = mass.sum(2, keepdims=True)
        seen = (tags[active, :, None] > 0) & (total > 0)
        new = np.where(seen, mass / np.where(seen, total, 1), q[active])
        moved = np.abs(new - q[active]).max((1, 2))
        q[active] = new
        active = active[moved > tolerance]
        if len(active) == 0:
            break
    return q, trace, len(active)


def rake_rows(codes: list[NDArray[np.int64]], targets: list[Array], weights: Array, iterations: int = 1000) -> Array:
    """Weights [N], scaled until the rows' weighted shares of every feature's values are its targets, or close to it.

    codes: per feature the value of each row, [N]; targets: per feature the shares of its values, summing to 1.
    """
    for _ in range(iterations):
        before = weights
        for code, target in zip(codes, targets, strict=True):
            counted: Array = np.bincount(code, weights, len(target)).astype(np.float64)
            weights = np.multiply(weights, _ratio(target, counted)[code])
        if np.abs(weights - before).max() <= 1e-10 * weights.max():
            break
    return weights


def unseen_directions(mixes: Array, weights: Array, tolerance: float) -> tuple[int, Array]:
    """Rank of the weighted mixes [C, T], and an orthonormal basis [T - rank, T] of what they leave open."""
    _, values, directions = np.linalg.svd(np.sqrt(weights)[:, None] * mixes, full_matrices=True)
    rank = int(np.count_nonzero(values > tolerance * values[0]))
    return rank, directions[rank:]


def tag_scores(tags: Array, base: Array, q: Array) -> dict[str, Array]:
    """Accuracy, lift, coverage and bits, [B] each. tags: [B, T]; base: [B, L]; q: [B, T, L]."""
    tagged = np.maximum(1 - tags[:, 0], 1e-12)
    accuracy = (tags[:, 1:] * np.diagonal(q[:, 1:], axis1=1, axis2=2)).sum(1) / tagged
    chance = np.maximum((tags[:, 1:] * base).sum(1) / tagged, 1e-12)
    joint = tags[:, :, None] * q
    bits = np.maximum(xlogy(joint, q).sum(1) - xlogy(joint.sum(1), joint.sum(1)), 0) / np.log(2)
    return {"accuracy": accuracy, "lift": accuracy / chance, "coverage": 1 - tags[:, 0], "bits": bits}


def resampled(sizes: Array, bootstrap: Bootstrap) -> Array:
    """[1 + resamples, C], rows summing to 1: the campaigns' weights, then those of campaigns drawn with replacement."""
    count, rng = len(sizes), np.random.default_rng(bootstrap.seed)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=bootstrap.resamples)
    weights = np.concatenate([np.ones((1, count)), drawn]) * sizes
    return weights / weights.sum(1, keepdims=True)


def interval(values: Array, bootstrap: Bootstrap) -> tuple[Array, Array]:
    """The middle `level` of values[1:], widened to hold values[0]."""
    tail = (1 - bootstrap.level) / 2
    low, high = np.quantile(values[1:], [tail, 1 - tail], axis=0)
    return np.minimum(low, values[0]), np.maximum(high, values[0])


def estimates(figures: Mapping[str, Array], bootstrap: Bootstrap) -> dict[str, Estimate]:
    """Each figure with its interval. An array's first value is the figure, the others are its resamples."""
    return {f: Estimate(float(x[0]), *map(float, interval(x, bootstrap))) for f, x in figures.items()}


def xlogy(x: Array, y: Array) -> Array:
    """sum x log y over the last axis, 0 where x is 0."""
    return (x * np.log(np.where(x > 0, y, 1))).sum(-1)


def _ratio(a: Array, b: Array) -> Array:
    """a / b, and 0 where b is 0: a cell that Q rules out stays empty."""
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(a.shape, b.shape)), where=b > 1e-300)
