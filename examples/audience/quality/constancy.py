"""Is a source the same in one vertical as in another? The methods assume it, of Q or of how it errs.

That verticals are alike does not say that campaigns are: whether these are is for assumption.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from examples.audience.quality import model, simplex
from examples.audience.quality.campaigns import Campaigns
from examples.audience.quality.model import Holds
from loka_compile.sampling.intervals import Array

RIDGE = 1e-6


@dataclass(frozen=True, eq=False)
class Constancy:
    """p: chance that verticals dealt at random explain as much. q: vertical -> [K + 1, K]; where errors hold vertical
    -> [K, K + 1], P(tag | category). spread: largest difference of one of its entries between two verticals."""

    p: float
    q: dict[str, Array]
    spread: float

    @property
    def holds(self) -> bool:
        """Whether the verticals give no reason to doubt one Q, at 5 %."""
        return self.p >= 0.05


def constancy(
    data: Campaigns, verticals: Sequence[str], permutations: int = 200, seed: int = 0, holds: Holds = "tags"
) -> Constancy:
    """A permutation test: how much better do the reports fit with a Q a vertical than with Qs of random groups?

    verticals [C]: each campaign's. A vertical needs at least two campaigns.
    """
    names, codes, counts = np.unique(np.asarray(verticals), return_inverse=True, return_counts=True)
    if len(codes) != len(data.sizes):
        raise ValueError(f"{len(data.sizes)} campaigns have {len(codes)} verticals; one each is expected")
    if len(names) < 2 or counts.min() < 2:
        raise ValueError(
            f"two verticals of two campaigns each are the least; got {dict(zip(names, counts, strict=True))}"
        )
    rng = np.random.default_rng(seed)
    of = model.tags(data) if holds == "tags" else model.errors(data)
    prior = np.tile(data.sizes @ of.response / data.sizes.sum(), (of.design.shape[1], 1))

    def fitted(group: Array) -> Array:
        """One Q a group, [groups, K + 1, K]; group [C]: numbers."""
        weights = np.stack([np.where(group == g, data.sizes, 0) for g in range(len(names))])
        weights = weights / weights.sum(1, keepdims=True)
        weighted = (weights[:, :, None] * of.design).transpose(0, 2, 1)
        gram, cross = weighted @ of.design + RIDGE * np.eye(len(prior)), weighted @ of.response + RIDGE * prior
        return simplex.least_squares(gram, cross, np.broadcast_to(prior, cross.shape), 1e-6, 500)

    def error(group: Array, q: Array) -> float:
        predicted = np.einsum("ca,cak->ck", of.design, q[group])
        return float(data.sizes @ ((of.response - predicted) ** 2).sum(1))

    own = fitted(codes)
    seen = error(codes, own)
    dealt = [rng.permutation(codes) for _ in range(permutations)]
    as_good = sum(error(group, fitted(group)) <= seen for group in dealt)
    by_name = {str(name): q for name, q in zip(names, own, strict=True)}
    return Constancy((1 + as_good) / (1 + permutations), by_name, float(np.ptp(own, axis=0).max()))
