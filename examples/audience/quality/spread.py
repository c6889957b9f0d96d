"""How far a Q fitted to few campaigns may be off: draws of it that hold the truth as often as they say.

Campaigns drawn again with replacement are too alike: a campaign pulls the fit towards itself, so what is left of its
error is too small, and the normal's tails are too thin for an error that is itself estimated from few campaigns. The
remedy for the first is that of Bell and McCaffrey ("Bias reduction in standard errors for linear regression with
multi-stage samples", 2002): what is left of an error is divided by the root of the part that the campaign's leverage
leaves (CR2; HC2 where a report is one figure). That for the second is a studentized bootstrap (Efron 1982; Hall 1988):
errors drawn from reports' variances say how many such standard errors off a fit of these campaigns is.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from examples.audience.quality.campaigns import Campaigns
from loka_compile.sampling.intervals import Array, Bootstrap

RIDGE = 1e-9
"""Part of the information's mean eigenvalue, added to it: a row of Q about which nothing is known stays as it is."""

SEEN = 1e-6
"""If less than this part of an error is left, a campaign alone decides a row of Q: nobody can say how far off it is."""

STUDENTIZED = 1000
"""Draws of all campaigns' errors, from which the quantiles are."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """q [resamples, T, L]: draws, which leave the simplex; blind [T]: the tags whose error no campaign shows."""

    q: Array
    blind: NDArray[np.bool_]


def drawn(data: Campaigns, mixes: Array, q: Array, precision: Array, bootstrap: Bootstrap) -> Drawn:
    """Draws of Q about the fit without bounds.

    q [T, L] minimises sum_k sizes_k e_k' precision_k e_k over the simplex, where e_k [L - 1] is the error of all
    reported shares but the last, reports_k - mixes_k q. mixes: [C, T]; precision: [C, L - 1, L - 1]. Without the bounds
    the fit is linear, and so unbiased: draws leave the simplex, and intervals of them are to be cut to [0, 1].
    """
    (campaigns, tags), free = mixes.shape, q.shape[1] - 1
    share = (data.sizes / data.sizes.mean())[:, None, None]
    root = np.linalg.cholesky(precision * share).transpose(0, 2, 1)
    design = np.einsum("ka,kij->kiaj", mixes, root).reshape(campaigns * free, tags * free)
    information = design.T @ design
    information += RIDGE * max(1.0, np.trace(information) / len(information)) * np.eye(len(information))
    back = np.linalg.solve(information, design.T)  # the fit of errors

    def errors(fitted: Array) -> Array:
        return np.einsum("kij,kj->ki", root, (data.reports - mixes @ fitted)[:, :free])

    centre = q + _closed((back @ errors(q).ravel()).reshape(tags, free))
    reach = _closed(back.T.reshape(campaigns, free, tags, free))  # what an error does to each entry of Q
    leverage = np.einsum("kip,pkj->kij", design.reshape(campaigns, free, -1), back.reshape(-1, campaigns, free))
    left, axes = np.linalg.eigh(np.eye(free) - leverage)
    raised = (axes / np.sqrt(np.maximum(left, SEEN))[:, None]) @ axes.transpose(0, 2, 1)
    corrected = np.einsum("kij,kjac->kiac", raised, reach)
    kept = (axes * left[:, None]) @ axes.transpose(0, 2, 1)
    seen = np.einsum("kij,kiac,kjac->ac", kept, corrected, corrected)
    blind = (seen < 0.99 * (reach**2).sum((0, 1))).any(1)

    rng = np.random.default_rng((bootstrap.seed, 1))
    chance = np.linalg.cholesky(
        variances(q, data.mixes, data.sizes) / share
    )  # of errors, as users drawn from Q make them
    noise = np.einsum("kij,skj->ski", root @ chance, rng.standard_normal((STUDENTIZED, campaigns, free)))
    rest = noise - ((noise.reshape(STUDENTIZED, -1) @ back.T) @ design.T).reshape(noise.shape)
    quantiles = [_quantile(noise, rest, reach[:, :, tag], corrected[:, :, tag], bootstrap.level) for tag in range(tags)]
    wider = np.where(blind, 1, quantiles)[:, None] / NormalDist().inv_cdf((1 + bootstrap.level) / 2)
    influence = np.einsum("ki,kiac->kac", errors(centre), corrected) * wider
    return Drawn(centre + np.tensordot(rng.standard_normal((bootstrap.resamples, campaigns)), influence, 1), blind)


def _quantile(noise: Array, rest: Array, reach: Array, corrected: Array, level: float) -> float:
    """How many standard errors, as `rest` shows them, a row of Q is off at most, with chance `level`.

    noise, rest: [S, C, L - 1], errors and what a fit leaves of them; reach, corrected: [C, L - 1, L], what an error
    does to each entry of the row, and what is left of it tells of that.
    """
    off = np.einsum("ski,kic->sc", noise, reach)
    error = np.sqrt((np.einsum("ski,kic->skc", rest, corrected) ** 2).sum(1))
    return float(np.quantile(np.abs(off) / np.maximum(error, 1e-300), level))


def variances(q: Array, mixes: Array, sizes: Array) -> Array:
    """[C, L - 1, L - 1]: covariance of a user's true category, but the last, by campaign, given how many have each tag.

    Q is drawn towards even shares by half a user of each category, lest a share of 0 is taken for certain.
    """
    categories, users = q.shape[1], sizes[:, None, None]
    even = (users * q + 0.5) / (users + categories / 2)  # [C, T, L]
    found = -np.einsum("ka,kac,kad->kcd", mixes, even, even)
    found[:, range(categories), range(categories)] += np.einsum("ka,kac->kc", mixes, even)
    return found[:, :-1, :-1]


def _closed(moved: Array) -> Array:
    """Moves of all categories but the last, and the last one's, as shares sum to 1."""
    return np.concatenate([moved, -moved.sum(-1, keepdims=True)], axis=-1)
