"""How well a source of rows matches the truth, or production traffic, where that is known only in aggregates.

Two questions. *Tags*: a source tags users; per campaign an agency reports only the shares of each true category. How
often is a tag right? *Calibration*: rows calibrate a profile; of production only each feature's shares are known. Are
the rows fit to speak for it, and which weights would make them so?

The setting is that of "Towards data quality assessment in online advertising" (arXiv 1711.11175), whose equations we
have not seen: the formulation below is ours. Shapes: C campaigns, K categories, tags 0..K where 0 is untagged and tag
a claims category a - 1; Q is [K + 1, K], Q[a, c] = P(true category c | tag a). Where the data say nothing about a
row of Q the prior speaks, a flag says so, and the interval is as wide as can be. simplex.py does the arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from loka_compile.sampling import simplex
from loka_compile.sampling.simplex import (
    BOOTSTRAP,
    Array,
    Bootstrap,
    Campaigns,
    Estimate,
    estimates,
    interval,
    resampled,
)

Shares = Mapping[str, Mapping[Any, float]]
"""Feature -> value -> share of the rows that have it."""

RANK_TOLERANCE = 1e-3
"""Singular values of the tag mixes below this part of the largest are 0: there noise of 0.1 % would decide Q."""
MAX_SCATTER = 3.0
"""Reports that scatter this many times more than users drawn from one Q would: Q differs between campaigns."""
MIN_CAMPAIGNS = 10
"""Intervals by resampling fewer campaigns are flagged: they come out too narrow."""


@dataclass(frozen=True, eq=False)
class Quality:
    """What one method says of a source.

    scores: `accuracy`, share of the tagged users whose tag is right; `lift`, accuracy over that of the same tags dealt
    at random; `coverage`, share of users with a tag; `bits`, mutual information of tag and truth; or `agreement`.
    q, low, high: [K + 1, K], or None. rank: of the tag mixes; below K + 1 the campaigns cannot tell all tags apart.
    scatter: squared error of the reports over what chance allows. flags: reasons for doubt, none if all is well.
    log_likelihood: by iteration, of expectation-maximisation.
    """

    method: str
    scores: dict[str, Estimate]
    rank: int
    flags: tuple[str, ...] = ()
    q: Array | None = None
    low: Array | None = None
    high: Array | None = None
    scatter: float | None = None
    log_likelihood: tuple[float, ...] = ()


def marginal_agreement(data: Campaigns, bootstrap: Bootstrap = BOOTSTRAP) -> Quality:
    """1 - total variation between the shares of tags, among the tagged, and the reported shares, over campaigns.

    Sees marginals only: tags that are all wrong, but wrong evenly, agree perfectly.
    """
    weights, tagged = resampled(data.sizes, bootstrap), data.mixes[:, 1:]
    covered = tagged.sum(1)
    distance = np.abs(tagged / np.maximum(covered, 1e-300)[:, None] - data.reports).sum(1) / 2
    agreement = 1 - (weights * covered) @ distance / np.maximum(weights @ covered, 1e-300)
    figures = {"agreement": agreement, "coverage": weights @ covered}
    flags = ("compares marginals only: errors that cancel are invisible",)
    return Quality("marginal_agreement", estimates(figures, bootstrap), _unseen(data)[0], flags)


def constrained_regression(
    data: Campaigns, bootstrap: Bootstrap = BOOTSTRAP, *, prior: ArrayLike | None = None, ridge: float = 1e-6
) -> Quality:
    """argmin over Q of mean_k ||reports_k - mixes_k Q||^2 + ridge ||Q - prior||^2, rows on the simplex.

    The mean is weighted by size. prior [K + 1, K]: by default a source that knows nothing, every row the overall
    shares. An under-determined problem is flagged; it is an error where `ridge` is 0.
    """
    weights, q0 = resampled(data.sizes, bootstrap), _prior(data, prior)
    undetermined, flags = _told_apart(data)
    if ridge < 0 or (ridge == 0 and undetermined):
        raise ValueError(flags[0] if flags else f"ridge must not be negative, got {ridge}")
    weighted = (weights[:, :, None] * data.mixes).transpose(0, 2, 1)
    gram, cross = weighted @ data.mixes + ridge * np.eye(len(q0)), weighted @ data.reports + ridge * q0
    q = simplex.least_squares(gram, cross, np.broadcast_to(q0, cross.shape))
    return _quality("constrained_regression", data, q, weights, bootstrap, undetermined, flags)


def expectation_maximisation(
    data: Campaigns,
    bootstrap: Bootstrap = BOOTSTRAP,
    *,
    prior: ArrayLike | None = None,
    tolerance: float = 1e-6,
    iterations: int = 2000,
) -> Quality:
    """The Q under which campaigns with these tags most likely give these reports; starts from `prior`.

    E: each campaign's table of tag by truth, from Q by iterative proportional fitting to its two margins. M: Q from
    the sum of the tables. The log-likelihood is its leading term for large campaigns, -KL(table | tags times Q): it
    never falls, and is concave in Q, so there is one optimum. Unlike the regression it knows the reports' variances.
    """
    weights, q0 = resampled(data.sizes, bootstrap), np.maximum(_prior(data, prior), 1e-12)
    undetermined, flags = _told_apart(data)
    q0 /= q0.sum(1, keepdims=True)
    q, trace, moving = simplex.likeliest(data.mixes, data.reports, weights, q0, tolerance, iterations)
    if moving:
        flags += (f"{moving} of {len(weights)} fits still moved after {iterations} iterations",)
    likelihood = tuple(float(data.sizes.sum()) * value for value in trace)
    return _quality("expectation_maximisation", data, q, weights, bootstrap, undetermined, flags, likelihood)


def single_tag(
    data: Campaigns, bootstrap: Bootstrap = BOOTSTRAP, *, prior: ArrayLike | None = None, purity: float = 0.95
) -> Quality:
    """Q[a] is the report of the campaigns in which at least `purity` of the users have tag a, pooled by size."""
    if not 0.5 < purity <= 1:
        raise ValueError(f"purity must be in (0.5, 1], got {purity}")
    weights, q0 = resampled(data.sizes, bootstrap), _prior(data, prior)
    dedicated = (data.mixes >= purity - 1e-12).astype(float)  # [C, K + 1]
    pooled = (weights[:, :, None] * dedicated).transpose(0, 2, 1) @ data.reports
    mass = (weights @ dedicated)[:, :, None]
    q = np.where(mass > 0, pooled / np.where(mass > 0, mass, 1), q0)
    missing = np.flatnonzero(dedicated.sum(0) == 0).tolist()
    flags = (f"no campaign of its own for tags {missing}: their rows are the prior",) if missing else ()
    return _quality("single_tag", data, q, weights, bootstrap, missing, flags)


def verdict(score: Estimate, threshold: float) -> str:
    """`accept` where the whole interval clears the threshold, `refuse` where none of it does, else `flag`."""
    return "accept" if score.low >= threshold else "refuse" if score.high < threshold else "flag"


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
    source, production = _shares("source", source), _shares("production", production)
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
    table, production = _table(columns, weights), _shares("production", production)
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
    raked = simplex.rake_rows(codes, targets, start)
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


def _shares(what: str, shares: Shares) -> dict[str, dict[Any, float]]:
    if not shares:
        raise ValueError(f"{what} has no features")
    for name, by_value in shares.items():
        total = sum(by_value.values())
        if any(not share >= 0 for share in by_value.values()) or not abs(total - 1) <= simplex.SUM_TOLERANCE:
            raise ValueError(f"{what}: the shares of {name!r} must not be negative and sum to 1; they sum to {total:g}")
    return {f: {v: float(x) / sum(by_value.values()) for v, x in by_value.items()} for f, by_value in shares.items()}


def _prior(data: Campaigns, prior: ArrayLike | None) -> Array:
    shape = data.mixes.shape[1], data.reports.shape[1]
    if prior is None:
        return np.tile(data.sizes @ data.reports / data.sizes.sum(), (shape[0], 1))
    q0 = np.asarray(prior, float)
    if q0.shape != shape or not np.allclose(q0, simplex.project(q0), atol=1e-6):
        raise ValueError(f"prior must be {list(shape)} with rows that are shares of 1; got {q0.tolist()}")
    return q0


def _unseen(data: Campaigns) -> tuple[int, list[int]]:
    """Rank of the tag mixes, and the tags that move along directions the campaigns do not show."""
    rank, directions = simplex.unseen_directions(data.mixes, data.sizes / data.sizes.sum(), RANK_TOLERANCE)
    part = (directions**2).sum(0)
    return rank, np.flatnonzero(part > 0.01 * part.max()).tolist()


def _told_apart(data: Campaigns) -> tuple[list[int], tuple[str, ...]]:
    """The tags whose rows of Q the campaigns leave open, and the flag that says so."""
    rank, undetermined = _unseen(data)
    reason = (
        f"under-determined: the campaigns' tag mixes have rank {rank} of {data.mixes.shape[1]} and cannot tell tags "
        f"{undetermined} apart; add campaigns with other mixes"
    )
    return undetermined, (reason,) if undetermined else ()


def _quality(
    method: str,
    data: Campaigns,
    q: Array,
    weights: Array,
    bootstrap: Bootstrap,
    undetermined: Sequence[int],
    flags: tuple[str, ...],
    trace: tuple[float, ...] = (),
) -> Quality:
    """Scores and intervals from q [1 + resamples, K + 1, K]; what is undetermined gets the widest interval."""
    figures = simplex.tag_scores(weights @ data.mixes, weights @ data.reports, q)
    scores = estimates(figures, bootstrap)
    low, high = interval(q, bootstrap)
    low[undetermined], high[undetermined] = 0, 1
    always_right = simplex.tag_scores(weights @ data.mixes, weights @ data.reports, np.ones_like(q))
    widest = {"accuracy": 1.0, "lift": float(always_right["lift"][0]), "bits": float(np.log2(q.shape[2]))}
    for name in widest if any(undetermined) else ["bits"] if undetermined else []:  # tag 0 counts for bits alone
        scores[name] = Estimate(scores[name].value, 0.0, max(widest[name], scores[name].value))
    errors = data.sizes @ ((data.reports - data.mixes @ q[0]) ** 2).sum(1)
    scatter = float(errors / max((data.mixes @ (q[0] * (1 - q[0]))).sum(), 1e-12))
    if scatter > MAX_SCATTER:
        flags += (f"reports scatter {scatter:.1f} times more than chance allows: Q differs between campaigns",)
    if len(data.sizes) < MIN_CAMPAIGNS:
        flags += (f"only {len(data.sizes)} campaigns: the intervals are too narrow",)
    return Quality(method, scores, _unseen(data)[0], flags, q[0], low, high, scatter, trace)
