"""Which of the two models of a source (model.py) the campaigns bear out, if either.

The criterion is Pearson's: the squared errors of the best fit, each over the variance that chance gives it, by degree
of freedom ("On the criterion that a given system of deviations ...", 1900; as the dispersion of a fit McCullagh and
Nelder, "Generalized Linear Models", 1989, section 4.5). It is 1 where the model is right and users are drawn by chance.
Both models are measured in their own chance, so that the figures compare; the smaller one is borne out better. Rows of
a fit are shares: without these bounds either model could mimic the other one, by its inverse.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from examples.audience.quality import model, simplex
from examples.audience.quality.campaigns import Campaigns
from examples.audience.quality.model import Holds, Model

MAX_SCATTER = 3.0
"""Errors with more than this many times the variance that chance gives them: the model is wrong."""

RIDGE = 1e-6
"""Holds a fit where the campaigns leave it open."""

ROUNDS = 4
"""Of fits, each weighted by the variances under the one before it."""

WORDS = {
    "tags": "a tag means the same in all campaigns: P(truth | tag) is one",
    "errors": "the source errs alike in all campaigns: P(tag | truth) is one",
}


@dataclass(frozen=True)
class Assumption:
    """tags, errors: scatter of the campaigns under either model; limits: what chance alone stays below, at 99.9 %."""

    tags: float
    errors: float
    limits: tuple[float, float]

    @property
    def holds(self) -> Holds:
        return "tags" if self.tags <= self.errors else "errors"

    @property
    def fits(self) -> bool:
        """Whether the better one explains the campaigns."""
        limit = self.limits[0 if self.holds == "tags" else 1]
        return min(self.tags, self.errors) <= max(MAX_SCATTER, limit)

    @property
    def told_apart(self) -> bool:
        """Whether the campaigns show that the other one is wrong."""
        return max(self.tags, self.errors) > self.limits[1 if self.holds == "tags" else 0]

    def __str__(self) -> str:
        figures = f"scatter over chance {self.tags:,.1f} if tags hold, {self.errors:,.1f} if errors do"
        if not self.fits:
            return f"NEITHER assumption fits ({figures}): only bounds that need none are given"
        doubt = "" if self.told_apart else "; the campaigns do not tell it from the other one"
        return f"{WORDS[self.holds]} ({figures}{doubt})"


def assumption(data: Campaigns) -> Assumption:
    (by_tags, free_tags), (by_errors, free_errors) = map(_scatter, (model.tags(data), model.errors(data)))
    return Assumption(by_tags, by_errors, (_limit(free_tags), _limit(free_errors)))


def _scatter(of: Model) -> tuple[float, int]:
    """Pearson's statistic by degree of freedom, and how many there are; 0 where nothing is left to show an error."""
    rows, free = of.design.shape[1], of.response.shape[1] - 1
    q, weights = np.tile(of.sizes @ of.response / of.sizes.sum(), (rows, 1)), of.sizes / of.sizes.sum()
    for _ in range(ROUNDS):
        q = simplex.regression(of.design, of.response, weights, q, RIDGE, 1e-7)
        chance = of.covariance(q)
        weights = 1 / np.trace(chance, axis1=1, axis2=2)
        weights /= weights.sum()
    off = (of.response - of.design @ q)[:, :-1]
    left = free * (len(off) - int(np.linalg.matrix_rank(of.design, 1e-6 * np.linalg.norm(of.design))))
    squares = float((off * np.linalg.solve(chance, off[:, :, None])[:, :, 0]).sum())
    return (squares / left if left > 0 else 0.0), left


def _limit(free: int) -> float:
    """What chi squared by degree of freedom exceeds with chance 0.1 % (Wilson and Hilferty 1931)."""
    if free <= 0:
        return float("inf")
    part = 2 / (9 * free)
    return float((1 - part + NormalDist().inv_cdf(0.999) * part**0.5) ** 3)
