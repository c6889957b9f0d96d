"""An output's gradient: rows of very different size, many of them zero, around directions that are Gaussian.

A row is zero with its own chance; else its norm is log-normal and its direction that of a Gaussian over the normalized
rows. One Gaussian over the rows themselves would draw neither the zeros nor the few rows that set a tensor's scale.
That gradients need a model of their own is LoKA's open point; this one is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from loka_compile.probe.gaussian import learner
from loka_compile.probe.low_rank import LowRank


@dataclass(frozen=True, eq=False)
class GradientModel:
    """mean, factor, diagonal: a LowRank over normalized rows. zero_share: of rows that are zero. log_mean, log_std: of
    the natural logarithm of the other rows' norms."""

    mean: Tensor
    factor: Tensor
    diagonal: Tensor
    zero_share: float
    log_mean: float
    log_std: float

    def __post_init__(self) -> None:
        LowRank(self.mean, self.factor, self.diagonal)

    @property
    def features(self) -> int:
        return len(self.mean)

    def draw(self, count: int, generator: torch.Generator, features: Tensor | None = None) -> Tensor:
        """`count` independent rows, (count, F) in float32; only the given features if there are any."""
        rows = LowRank(self.mean, self.factor, self.diagonal).draw(count, generator, features)
        drawn = torch.randn(count, 1, generator=generator, dtype=torch.float32, device="cpu")
        norms = (self.log_mean + self.log_std * drawn).exp()
        there = torch.rand(count, 1, generator=generator, dtype=torch.float32, device="cpu") >= self.zero_share
        return rows * norms * there


class GradientLearner:
    """Learns a GradientModel from batches of rows."""

    def __init__(self, features: int) -> None:
        self.directions = learner(features)
        self.rows = self.zero = 0
        self.log_mean = self.log_m2 = 0.0

    def add(self, rows: Tensor) -> None:
        """rows: (n, F), finite."""
        norms = rows.double().norm(dim=1)
        there = norms > 0
        self.rows += len(rows)
        self.zero += len(rows) - int(there.sum())
        if not there.any():
            return
        logs = norms[there].log()
        before, n = self.rows - self.zero - len(logs), len(logs)
        shift = logs.mean().item() - self.log_mean
        self.log_m2 += logs.var(correction=0).item() * n + shift**2 * before * n / (before + n)
        self.log_mean += shift * n / (before + n)
        self.directions.add((rows[there].double() / norms[there, None]).float())

    def result(self) -> GradientModel:
        seen, known = self.rows - self.zero, self.directions.result()
        zero_share, spread = self.zero / max(1, self.rows), math.sqrt(self.log_m2 / max(1, seen - 1))
        return GradientModel(known.mean, known.factor, known.diagonal, zero_share, self.log_mean, spread)
