"""Two models of a source: what does not change from campaign to campaign, and how far off reports then are by chance.

`tags`: P(truth | tag), so that reports are expected to be tag mixes times Q [T, L]. `errors`: P(tag | truth), so that
tag mixes are expected to be true mixes times E [L, T]. An agency asks a panel, some of the campaign's users, so true
mixes are known with an error. A regression on such mixes is too flat; on what they most likely are, given what was
reported, it is not (regression calibration: Carroll, Ruppert, Stefanski and Crainiceanu 2006, chapter 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from examples.audience.quality.campaigns import Campaigns
from loka_compile.sampling.intervals import Array

Holds = Literal["tags", "errors"]


@dataclass(frozen=True, eq=False)
class Model:
    """response [C, R] is expected to be design [C, D] times coefficients [D, R], whose rows are on the simplex.

    shares [C, D]: of each campaign's users; counted [C]: users that the response counts; unsure [C, D, D]: covariance
    of the design's error; sizes [C]: what a campaign weighs.
    """

    holds: Holds
    design: Array
    response: Array
    shares: Array
    counted: Array
    unsure: Array
    sizes: Array

    def within(self, q: Array) -> Array:
        """[C, R - 1, R - 1]: covariance of the response but its last share, given how many users are of each row of q.

        q is drawn towards even shares by half a user of each, lest a share of 0 is taken for certain.
        """
        shares, users = q.shape[1], self.counted[:, None, None]
        even = (users * q + 0.5) / (users + shares / 2)  # [C, D, R]
        found = -np.einsum("kd,kdi,kdj->kij", self.shares, even, even)
        found[:, range(shares), range(shares)] += np.einsum("kd,kdi->ki", self.shares, even)
        return found[:, :-1, :-1] / users

    def covariance(self, q: Array) -> Array:
        """The same, of the response's error about the design times q."""
        free = q[:, :-1]
        return self.within(q) + np.einsum("di,kde,ej->kij", free, self.unsure, free)


def tags(data: Campaigns) -> Model:
    """P(truth | tag) is one."""
    one = -np.einsum("ka,kb->kab", data.mixes, data.mixes)  # of one user drawn from a campaign
    one[:, range(data.mixes.shape[1]), range(data.mixes.shape[1])] += data.mixes
    return Model("tags", data.mixes, data.reports, data.mixes, data.sizes, one * _asked(data), data.sizes)


def errors(data: Campaigns) -> Model:
    """P(tag | truth) is one."""
    weights = data.sizes / data.sizes.sum()
    mean = weights @ data.reports
    off = data.reports - mean
    seen = (weights[:, None] * off).T @ off
    one = np.diag(mean) - np.einsum("k,ka,kb->ab", weights, data.reports, data.reports)  # of one user asked
    noise = one * _asked(data)
    values, axes = np.linalg.eigh(seen - np.einsum("k,kab->ab", weights, noise))
    true = (axes * np.maximum(values, 0)) @ axes.T  # how true mixes vary
    kept = true @ np.linalg.pinv(true + noise, rcond=1e-9, hermitian=True)  # [C, L, L]
    likely = mean + np.einsum("kab,kb->ka", kept, off)
    return Model("errors", likely, data.mixes, data.reports, data.users, kept @ noise, data.sizes)


def _asked(data: Campaigns) -> Array:
    """[C, 1, 1]: how far a panel's mix is off its campaign's, in variances of one user; 0 where all were asked."""
    return (1 / data.sizes - 1 / data.users)[:, None, None]
