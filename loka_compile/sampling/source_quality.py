"""How well rows match production traffic of which only each feature's shares are known, and which weights mend it.

Rows calibrate a profile: `assess` says whether they can speak for production, `rake` weighs them so that they do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from loka_compile.sampling.intervals import BOOTSTRAP, Array, Bootstrap, Estimate, verdict

Shares = Mapping[str, Mapping[Any, float]]
"""Feature -> value -> share of the rows that have it."""

SUM_TOLERANCE = 0.01 + 1e-9
"""Shares may miss 1 by this much, as reports are rounded to whole percents; they are then scaled to 1."""


@dataclass(frozen=True)
class Assessment:
    """score: that of the feature that agrees least; features: 1 - total variation by feature; reason: for a reader."""

    verdict: str
    reason: str
    score: Estimate
    features: dict[str, float]


def assess(
    source: Shares, production: Shares, threshold: float = 0.9, *, rows: float, bootstrap: Bootstrap = BOOTSTRAP
) -> Assessment:
    """Do calibration rows with the shares `source` speak for traffic with the shares `production`?

    rows: how many there are; of weighted rows, their effective number. The interval is the score plus and minus a
    quantile of the total variation that drawing so few rows causes: by the triangle inequality, rather too wide.
    """
    source, production = _checked("source", source), _checked("production", production)
    if absent := [name for name in production if name not in source]:
        raise ValueError(f"the source has no features {absent}; it has {list(source)}")
    if not rows >= 1 or not 0 <= threshold <= 1:
        raise ValueError(f"needs at least 1 row and a threshold in [0, 1]; got rows={rows}, threshold={threshold}")
    rng, noise, features = np.random.default_rng(bootstrap.seed), np.zeros(bootstrap.resamples), {}
    for name, there in production.items():
        here = source[name]
        features[name] = sum(min(share, here.get(value, 0)) for value, share in there.items())
        p = np.array(list(here.values()))
        noise = np.maximum(noise, np.abs(rng.multinomial(int(rows), p, bootstrap.resamples) / int(rows) - p).sum(1) / 2)
    worst, slack = min(features, key=features.__getitem__), float(np.quantile(noise, bootstrap.level))
    score = Estimate(features[worst], max(features[worst] - slack, 0.0), min(features[worst] + slack, 1.0))
    here, there = source[worst], production[worst]
    value = max({**here, **there}, key=lambda v: abs(here.get(v, 0) - there.get(v, 0)))
    reason = (
        f"{worst!r} agrees least with production: {score}, threshold {threshold:g}; most off is {value!r}, "
        f"{here.get(value, 0):.3f} of the rows and {there.get(value, 0):.3f} of production"
    )
    return Assessment(verdict(score, threshold), reason, score, features)


@dataclass(frozen=True, eq=False)
class Raking:
    """weights [N], of mean 1; effective: rows that unweighted would say as much; error: largest miss of a share."""

    weights: Array
    effective: float
    error: float


def rake(columns: Mapping[str, ArrayLike], production: Shares, weights: ArrayLike | None = None) -> Raking:
    """The weights nearest to `weights` (1) under which the rows have production's shares of every feature.

    columns: feature -> its value in each row, [N]. A value that no row has cannot be weighted up: the others share the
    rest, and `error` shows it, as it does shares that no weights reach together. Assess the result: `shares_of`.
    """
    table, production = _table(columns, weights), _checked("production", production)
    if absent := [name for name in production if name not in table]:
        raise ValueError(f"the rows have no features {absent}; they have {list(table)}")
    codes, targets, start = [], [], np.array([])
    for name, there in production.items():
        values, code, start = table[name]
        target = np.array([there.get(value, 0.0) for value in values])
        if target.sum() == 0:
            raise ValueError(f"no row has a value of {name!r} that production has: {list(there)}")
        codes.append(code)
        targets.append(target / target.sum())
    raked = rake_rows(codes, targets, start)
    if not raked.sum() > 0:
        raise ValueError(f"no row has values that production has in all of {list(production)} at once")
    raked *= len(raked) / raked.sum()
    found = shares_of(columns, raked)
    error = max(abs(found[f].get(v, 0.0) - share) for f, there in production.items() for v, share in there.items())
    return Raking(raked, float(raked.sum() ** 2 / (raked**2).sum()), error)


def shares_of(columns: Mapping[str, ArrayLike], weights: ArrayLike | None = None) -> dict[str, dict[Any, float]]:
    """Feature -> value -> its share of the (weighted) rows."""
    table = _table(columns, weights)
    return {f: dict(zip(v, (np.bincount(c, w) / w.sum()).tolist(), strict=True)) for f, (v, c, w) in table.items()}


def _table(columns: Mapping[str, ArrayLike], weights: ArrayLike | None) -> dict[str, tuple[list[Any], Any, Array]]:
    """Feature -> its values, which of them each row has, and the rows' weights."""
    arrays = {name: np.asarray(column) for name, column in columns.items()}
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 1 or shape[0] == 0:
        raise ValueError(f"columns must be [N], alike and not empty; got { {n: a.shape for n, a in arrays.items()} }")
    w = np.ones(shape) if weights is None else np.asarray(weights, float)
    if w.shape != shape or not np.isfinite(w).all() or (w < 0).any() or w.sum() == 0:
        raise ValueError(f"weights must be {list(shape)}, finite, not negative and not all 0")
    uniques = {name: np.unique(array, return_inverse=True) for name, array in arrays.items()}
    return {name: (values.tolist(), code, w) for name, (values, code) in uniques.items()}


def _checked(what: str, shares: Shares) -> dict[str, dict[Any, float]]:
    if not shares:
        raise ValueError(f"{what} has no features")
    for name, by_value in shares.items():
        total = sum(by_value.values())
        if any(not share >= 0 for share in by_value.values()) or not abs(total - 1) <= SUM_TOLERANCE:
            raise ValueError(f"{what}: the shares of {name!r} must not be negative and sum to 1; they sum to {total:g}")
    return {f: {v: float(x) / sum(by_value.values()) for v, x in by_value.items()} for f, by_value in shares.items()}


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


def _ratio(a: Array, b: Array) -> Array:
    """a / b, and 0 where b is 0."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > 1e-300)
