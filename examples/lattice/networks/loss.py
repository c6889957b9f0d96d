"""What a network is trained on: cross-entropy, the correlation of probabilities with labels, a teacher's soft labels.

Sign and weight of the correlation loss are not published [C]; the guarded sigma is ours [I].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from examples.lattice.ktap.record import Knowledge

SIGMA = 1e-3
"""Deviations are not taken for smaller than this: a batch with labels of one kind has a deviation of 0."""


@dataclass(frozen=True)
class Target:
    """labels (B, T), nan where a row says nothing about a task; what a teacher knew of the rows, if anything."""

    labels: Tensor
    knowledge: Knowledge | None = None


@dataclass(frozen=True)
class Soft:
    """weight: of the soft labels' loss; smooth: how far they are drawn to one half."""

    weight: float = 1.0
    smooth: float = 0.05


@dataclass(frozen=True)
class Objective:
    """correlation: weight of the correlation loss; soft: how a teacher's soft labels count, None for not at all."""

    correlation: float = 0.0
    soft: Soft | None = None

    def __call__(self, logits: Tensor, target: Target) -> Tensor:
        known = ~target.labels.isnan()
        labels = target.labels.nan_to_num()
        found = mean(binary_cross_entropy_with_logits(logits, labels, reduction="none"), known)
        if self.correlation:
            each = correlation_loss(logits.sigmoid(), labels, known)
            found = found + self.correlation * mean(each, known.any(0))
        if self.soft and target.knowledge is not None:
            soft = (1 - self.soft.smooth) * target.knowledge.logits.sigmoid() + self.soft.smooth / 2
            each = binary_cross_entropy_with_logits(logits, soft, reduction="none")
            found = found + self.soft.weight * (each * target.knowledge.hit.unsqueeze(1) * known).sum() / count(known)
        return found


def mean(each: Tensor, known: Tensor) -> Tensor:
    """Over what is known; 0 if nothing is."""
    return (each * known).sum() / count(known)


def count(known: Tensor) -> Tensor:
    return known.sum().clamp(min=1)


def correlation_loss(p: Tensor, y: Tensor, known: Tensor | None = None) -> Tensor:
    """1 - Cov(y, p) / (sigma_y sigma_p) by task over the batch, (T,); p, y (B, T)."""
    weight = torch.ones_like(p) if known is None else known.to(p.dtype)
    rows = weight.sum(0).clamp(min=1)
    p, y = (weight * (x - (weight * x).sum(0) / rows) for x in (p, y))
    sigma_p, sigma_y = ((x.square().sum(0) / rows + SIGMA**2).sqrt() for x in (p, y))
    return 1 - (p * y).sum(0) / rows / (sigma_p * sigma_y)
