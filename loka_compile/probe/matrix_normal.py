"""A weight as a matrix normal, W ~ MN(M, U, V): it moves a little every step, so its mean and spread are followed.

Flip-flop updates with an exponential moving average (LoKA Probe). With W (m x n), W_c = W - M:

    U' = W_c V⁻¹ W_cᵀ / n;  V' = W_cᵀ U⁻¹ W_c / m;  U <- a U + (1 - a) U',  V likewise;  trace(U) = m fixes the scale

M follows W by the same average, which the paper leaves open. Up to COLUMNS columns of W are followed. U is whole up to
MEMORY, a diagonal beyond. A weight that stays, as in inference, has no spread and is drawn as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loka_compile.probe.gaussian import MEMORY
from loka_compile.probe.low_rank import RANK, LowRank

COLUMNS = 128
"""Columns of a weight that are followed: one run of scales of `fp8_blockwise`."""
DECAY = 0.95
JITTER = 1e-6
"""Share of the mean variance that is added to a matrix before it is inverted."""


@dataclass(frozen=True, eq=False)
class MatrixNormal:
    """mean: (n, F) float32, columns of the weight as rows. across: (n, n) float32, V's lower Cholesky factor.
    factor, diagonal: U as in LowRank, (r, F) and (F,)."""

    mean: Tensor
    across: Tensor
    factor: Tensor
    diagonal: Tensor

    def __post_init__(self) -> None:
        n, features = self.mean.shape
        if self.across.shape != (n, n) or self.factor.shape[1:] != (features,) or self.diagonal.shape != (features,):
            raise ValueError(f"mean {n} x {features} does not fit the spread {tuple(self.across.shape)}")

    @property
    def features(self) -> int:
        return self.mean.shape[1]

    def draw(self, count: int, generator: torch.Generator, features: Tensor | None = None) -> Tensor:
        """`count` columns, (count, F) in float32, of as many drawn weights as that takes; or some features of them."""
        spread = LowRank(torch.zeros(self.features, dtype=torch.float32, device="cpu"), self.factor, self.diagonal)
        drawn = []
        for _ in range(-(-count // len(self.mean))):
            noise = self.across @ spread.draw(len(self.mean), generator)
            drawn.append(self.mean + noise)
        rows = torch.cat(drawn)[:count]
        return rows if features is None else rows[:, features]


class FlipFlop:
    """Learns a MatrixNormal from the values a weight has had."""

    def __init__(self, features: int, generator: torch.Generator) -> None:
        self.generator = generator
        self.whole = 4 * features**2 <= MEMORY
        self.picked: Tensor | None = None
        self.mean = torch.empty(0, features, dtype=torch.float64, device="cpu")
        self.u = self.v = torch.empty(0, dtype=torch.float32, device="cpu")  # until it moves
        self.moved = False

    def add(self, columns: Tensor) -> None:
        """columns: (n, F), all of the weight's columns as rows, finite."""
        if self.picked is None or int(self.picked.max()) >= len(columns):
            start = torch.randint(max(1, len(columns) - COLUMNS + 1), (), generator=self.generator, device="cpu")
            self.picked = torch.arange(int(start), min(int(start) + COLUMNS, len(columns)), device="cpu")
            self.mean = columns[self.picked].double()
            return
        rows = columns[self.picked].double()
        centred = rows - self.mean
        if centred.any():
            self._update(centred)
        self.mean = DECAY * self.mean + (1 - DECAY) * rows

    def _update(self, centred: Tensor) -> None:
        features = centred.shape[1]
        if not self.moved:  # the first step says how large a step is: no average with nothing
            ones = torch.ones(features, dtype=torch.float64, device="cpu")
            self.u = ones.diag() if self.whole else ones
            self.v = centred @ centred.T / features
            self.moved = True
        u = self._between_columns(centred, self.v)
        v = self._between_features(centred, self.u)
        self.u, self.v = DECAY * self.u + (1 - DECAY) * u, DECAY * self.v + (1 - DECAY) * (v + v.T) / 2
        scale = (self.u.diagonal() if self.u.dim() == 2 else self.u).mean().clamp(min=1e-60)
        self.u, self.v = self.u / scale, self.v * scale

    def _between_columns(self, centred: Tensor, v: Tensor) -> Tensor:
        """U' = W_c V⁻¹ W_cᵀ / n, or its diagonal."""
        half = torch.linalg.solve_triangular(_cholesky(v), centred, upper=False)  # (n, F)
        return half.T @ half / len(centred) if self.whole else half.square().sum(0) / len(centred)

    def _between_features(self, centred: Tensor, u: Tensor) -> Tensor:
        """V' = W_cᵀ U⁻¹ W_c / m."""
        if u.dim() == 1:
            half = centred / (u + JITTER * u.mean()).sqrt()
        else:
            half = torch.linalg.solve_triangular(_cholesky(u), centred.T, upper=False).T
        return half @ half.T / centred.shape[1]

    def result(self) -> MatrixNormal:
        n, features = self.mean.shape
        mean = self.mean.float()
        if not self.moved:
            still = (
                torch.zeros(0, features, dtype=torch.float32, device="cpu").bfloat16(),
                torch.zeros(features, dtype=torch.float32, device="cpu"),
            )
            return MatrixNormal(mean, torch.zeros(n, n, dtype=torch.float32, device="cpu"), *still)
        if self.u.dim() == 1:
            directions, variance = torch.zeros(0, features, dtype=torch.float32, device="cpu"), self.u
        else:
            values, vectors = torch.linalg.eigh(self.u)
            directions = values[-RANK:].clamp(min=0).sqrt()[:, None] * vectors[:, -RANK:].T
            variance = self.u.diagonal()
        spread = LowRank.of(torch.zeros(features, dtype=torch.float32, device="cpu"), directions, variance)
        return MatrixNormal(mean, _cholesky(self.v).float(), spread.factor, spread.diagonal)


def _cholesky(matrix: Tensor) -> Tensor:
    """The Cholesky factor of the matrix with a little added to its diagonal: ten times more until the factor exists."""
    mean, eye = matrix.diagonal().mean().clamp(min=1e-60), torch.eye(len(matrix), dtype=matrix.dtype, device="cpu")
    for power in range(7):
        factor, failed = torch.linalg.cholesky_ex(matrix / mean + 10**power * JITTER * eye)
        if not failed:
            return factor * mean.sqrt()
    return matrix.diagonal().clamp(min=0).sqrt().diag()
