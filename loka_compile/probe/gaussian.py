"""A multivariate Gaussian over the features of an activation, learned batch by batch.

Rows are taken as independent: recommendation models avoid operations across the batch (LoKA Probe). Mean and centred
second moments merge after Chan et al. (1979), in float32:

    n' = n + B;  d = mean_b - mean;  mean' = mean + d B / n';  S' = S + S_b + d dᵀ n B / n'
"""

from __future__ import annotations

import torch
from torch import Tensor

from loka_compile.probe.low_rank import RANK, LowRank, StreamingLowRank

MEMORY = 2**18
"""Bytes a covariance may take while it is learned: up to 256 features it is learned whole."""


class Welford:
    """n rows, their mean (F,) and centred second moments (F, F)."""

    def __init__(self, features: int) -> None:
        self.n = 0
        self.mean = torch.zeros(features, dtype=torch.float32, device="cpu")
        self.second = torch.zeros(features, features, dtype=torch.float32, device="cpu")

    def add(self, rows: Tensor) -> None:
        """rows: (n, F), finite."""
        batch = Welford(0)
        batch.n, batch.mean = len(rows), rows.float().mean(0)
        centred = rows.float() - batch.mean
        batch.second = centred.T @ centred
        self.merge(batch)

    def merge(self, other: Welford) -> None:
        n = self.n + other.n
        if not other.n:
            return
        shift = other.mean - self.mean
        self.second = self.second + other.second + torch.outer(shift, shift) * (self.n * other.n / n)
        self.mean = self.mean + shift * (other.n / n)
        self.n = n

    @property
    def covariance(self) -> Tensor:
        """Unbiased; zero for a single row."""
        return self.second / max(1, self.n - 1)

    def result(self) -> LowRank:
        """The largest directions exactly, of what is left the diagonal."""
        covariance = self.covariance.double()
        values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
        kept = values[-RANK:].clamp(min=0).sqrt()[:, None] * vectors[:, -RANK:].T
        return LowRank.of(self.mean, kept.float(), covariance.diagonal())


def learner(features: int) -> Welford | StreamingLowRank:
    """Whole where the covariance fits into MEMORY, else of low rank."""
    return Welford(features) if 4 * features**2 <= MEMORY else StreamingLowRank(features)
