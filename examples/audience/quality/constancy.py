"""Is a source as right in one vertical as in another? The methods assume it: one Q for all campaigns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from examples.audience.quality import simplex
from examples.audience.quality.campaigns import Campaigns
from loka_compile.sampling.intervals import Array

RIDGE = 1e-6


@dataclass(frozen=True, eq=False)
class Constancy:
    """p: chance that verticals dealt at random explain as much. q: vertical -> [K + 1, K]. spread: largest difference
    of one entry of Q between two verticals."""

    p: float
    q: dict[str, Array]
    spread: float

    @property
    def holds(self) -> bool:
        """Whether the campaigns give no reason to doubt one Q, at 5 %."""
        return self.p >= 0.05


def constancy(data: Campaigns, verticals: Sequence[str], permutations: int = 200, seed: int = 0) -> Constancy:
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
    prior = np.tile(data.sizes @ data.reports / data.sizes.sum(), (data.mixes.shape[1], 1))

    def fitted(group: Array) -> Array:
        """One Q a group, [groups, K + 1, K]; group [C]: numbers."""
        weights = np.stack([np.where(group == g, data.sizes, 0) for g in range(len(names))])
        weights = weights / weights.sum(1, keepdims=True)
        weighted = (weights[:, :, None] * data.mixes).transpose(0, 2, 1)
        gram, cross = weighted @ data.mixes + RIDGE * np.eye(len(prior)), weighted @ data.reports + RIDGE * prior
        return simplex.least_squares(gram, cross, np.broadcast_to(prior, cross.shape), 1e-6, 500)

    def error(group: Array, q: Array) -> float:
        predicted = np.einsum("ca,cak->ck", data.mixes, q[group])
        return float(data.sizes @ ((data.reports - predicted) ** 2).sum(1))

    own = fitted(codes)
    seen = error(codes, own)
    dealt = [rng.permutation(codes) for _ in range(permutations)]
    as_good = sum(error(group, fitted(group)) <= seen for group in dealt)
    by_name = {str(name): q for name, q in zip(names, own, strict=True)}
    return Constancy((1 + as_good) / (1 + permutations), by_name, float(np.ptp(own, axis=0).max()))
