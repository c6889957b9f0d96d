"""Campaigns: what a source tagged in each, and what an agency reports of each."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from loka_compile.sampling.intervals import Array, Bootstrap, student
from loka_compile.sampling.source_quality import SUM_TOLERANCE


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


def resampled(sizes: Array, bootstrap: Bootstrap) -> Array:
    """[1 + resamples, C], rows summing to 1: the campaigns' weights, then those of campaigns drawn with replacement.

    All but one are drawn, as so many show the variance without bias (Rao and Wu 1988), and fewer still where there are
    few: so many that means spread by Student's t in place of the normal's quantile.
    """
    count, rng = len(sizes), np.random.default_rng(bootstrap.seed)
    thinner = (NormalDist().inv_cdf(0.975) / student(max(1, count - 1))) ** 2
    number = max(1, int((count - 1) * thinner))
    drawn = rng.multinomial(number, np.full(count, 1 / count), size=bootstrap.resamples)
    weights = np.concatenate([np.ones((1, count)), drawn]) * sizes
    return weights / weights.sum(1, keepdims=True)
