"""What a network is trained on: cross-entropy, the correlation of probabilities with labels, a teacher's soft labels.

Sign and weight of the correlation loss are not published [C]; the guarded sigma is ours [I].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from examples.lattice.ktap.record import Knowledge
from examples.lattice.ktap.student import Use

SIGMA = 1e-3
"""Deviations are not taken for smaller than this: a batch with labels of one kind has a deviation of 0."""


NO_TEACHER = Use(embedding=False, labels=False)


@dataclass(frozen=True)
class Target:
    """labels (B, T), nan where a row says nothing about a task; what a teacher knew of the rows, if anything."""

    labels: Tensor
    knowledge: Knowledge | None = None


@dataclass(frozen=True)
class Objective:
    """correlation: weight of the correlation loss; use: of a teacher's soft labels."""

    correlation: float = 0.0
    use: Use = NO_TEACHER

    def __call__(self, logits: Tensor, target: Target) -> Tensor:
        known = ~target.labels.isnan()
        labels = target.labels.nan_to_num()
        found = mean(binary_cross_entropy_with_logits(logits, labels, reduction="none"), known)
        if self.correlation:
            found = found + self.correlation * correlation_loss(logits.sigmoid(), labels, known).mean()
        if self.use.labels and target.knowledge is not None:
            soft = (1 - self.use.smooth) * target.knowledge.logits.sigmoid() + self.use.smooth / 2
            each = binary_cross_entropy_with_logits(logits, soft, reduction="none") * known
            found = found + self.use.weight * (each.mean(dim=1) * target.knowledge.hit).mean()
        return found


def mean(each: Tensor, known: Tensor) -> Tensor:
    """Over what is known; 0 if nothing is."""
    return (each * known).sum() / known.sum().clamp(min=1)


def correlation_loss(p: Tensor, y: Tensor, known: Tensor | None = None) -> Tensor:
    """1 - Cov(y, p) / (sigma_y sigma_p) by task over the batch, (T,); p, y (B, T)."""
    weight = torch.ones_like(p) if known is None else known.to(p.dtype)
    count = weight.sum(0).clamp(min=1)
    p, y = (weight * (x - (weight * x).sum(0) / count) for x in (p, y))
    sigma_p, sigma_y = ((x.square().sum(0) / count + SIGMA**2).sqrt() for x in (p, y))
    return 1 - (p * y).sum(0) / count / (sigma_p * sigma_y)
