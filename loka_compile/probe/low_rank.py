"""A Gaussian whose covariance is of low rank plus a diagonal: what a profile stores, for any number of features.

    x = mean + g @ factor + h * sqrt(diagonal)        g ~ N(0, I_r), h ~ N(0, I_F)

has covariance factorᵀ factor + diag(diagonal). The factor holds the largest principal directions, the diagonal what
is left of every feature's own variance, so variances are exact. A full covariance of 123,200 features, which occur
(LoKA), would take 60 GB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

RANK = 64
"""Principal directions that are kept."""
LARGEST = torch.finfo(torch.bfloat16).max


@dataclass(frozen=True, eq=False)
class LowRank:
    """mean: (F,) float32. factor: (r, F) bfloat16. diagonal: (F,) float32, variances."""

    mean: Tensor
    factor: Tensor
    diagonal: Tensor

    def __post_init__(self) -> None:
        features = (len(self.mean),)
        if self.mean.dim() != 1 or self.factor.shape[1:] != features or self.diagonal.shape != features:
            shapes = (tuple(x.shape) for x in (self.mean, self.factor, self.diagonal))
            raise ValueError("mean, factor and diagonal do not fit: {}, {}, {}".format(*shapes))

    @property
    def features(self) -> int:
        return len(self.mean)

    def draw(self, count: int, generator: torch.Generator, features: Tensor | None = None) -> Tensor:
        """`count` independent rows, (count, F) in float32; only the given features if there are any."""
        mean, factor, diagonal = self.mean, self.factor, self.diagonal
        if features is not None:
            mean, factor, diagonal = mean[features], factor[:, features], diagonal[features]
        along, across = (
            torch.randn(count, size, generator=generator, dtype=torch.float32, device="cpu")
            for size in (len(factor), len(mean))
        )
        return mean + along @ factor.float() + across * diagonal.sqrt()

    @classmethod
    def of(cls, mean: Tensor, directions: Tensor, variance: Tensor) -> LowRank:
        """directions: (r, F), scaled so that directionsᵀ directions is what they explain. variance: (F,), the whole."""
        factor = directions.clamp(-LARGEST, LARGEST).bfloat16()
        rest = variance.double() - factor.double().square().sum(0)
        return cls(mean.float(), factor, rest.clamp(min=0).float())


class StreamingLowRank:
    """Learns a LowRank from batches of rows in memory of RANK x F: mean and variances exactly, directions nearly.

    Each batch's centred rows, what was known so far, and one row for the shift of the mean are stacked, and their
    largest singular directions kept (sequential Karhunen-Loève: Ross et al. 2008, IJCV 77, section 2.1).
    """

    def __init__(self, features: int) -> None:
        self.n = 0
        self.mean = torch.zeros(features, dtype=torch.float64, device="cpu")
        self.m2 = torch.zeros(features, dtype=torch.float64, device="cpu")
        self.directions = torch.zeros(0, features, dtype=torch.float32, device="cpu")

    def add(self, rows: Tensor) -> None:
        """rows: (n, F), finite."""
        batch = StreamingLowRank(rows.shape[1])
        batch.n, batch.mean = len(rows), rows.double().mean(0)
        centred = rows.double() - batch.mean
        batch.m2 = centred.square().sum(0)
        batch.directions = _largest(centred.float())
        self.merge(batch)

    def merge(self, other: StreamingLowRank) -> None:
        n = self.n + other.n
        if not other.n:
            return
        shift, weight = other.mean - self.mean, self.n * other.n / n
        stacked = [self.directions, other.directions, (math.sqrt(weight) * shift).float()[None]]
        self.directions = _largest(torch.cat(stacked))
        self.mean = self.mean + shift * (other.n / n)
        self.m2 = self.m2 + other.m2 + shift.square() * weight
        self.n = n

    def result(self) -> LowRank:
        """The unbiased covariance's; of a single row that row, without any spread."""
        samples = max(1, self.n - 1)
        return LowRank.of(self.mean, self.directions / math.sqrt(samples), self.m2 / samples)


def _largest(rows: Tensor) -> Tensor:
    """At most RANK rows with nearly the same rowsᵀ rows. Through the smaller Gram matrix, in float64."""
    if len(rows) <= RANK:
        return rows
    scale = rows.abs().max().clamp(min=1e-30)
    values, vectors = torch.linalg.eigh(((rows / scale) @ (rows / scale).T).double())
    return (vectors[:, -RANK:].T.to(rows.dtype) @ rows) if values[-1] > 0 else rows[:RANK]
