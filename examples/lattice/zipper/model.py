"""A small model with a head a window, and the losses of the ways to learn from labels that are late."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from examples.models.dlrm import Tokens
from examples.models.wukong import mlp


class Heads(nn.Module):
    """One backbone, K linear heads: ids (B, F) and bag (B, most) to logits (B, K).

    nested: heads share the last one's chance, see `nest`. The paper has plain heads; this is ours [I].
    """

    def __init__(
        self,
        cardinalities: tuple[int, ...],
        bag: int,
        heads: int,
        *,
        width: int = 8,
        hidden: tuple[int, ...] = (128, 64),
        nested: bool = False,
    ) -> None:
        super().__init__()
        self.nested = nested
        self.tokens = Tokens(cardinalities, bag, width)
        self.backbone = nn.Sequential(mlp((len(cardinalities) + 1) * width, *hidden, dropout=0.0), nn.ReLU())
        self.heads = nn.Linear(hidden[-1], heads)

    def forward(self, ids: Tensor, bag: Tensor) -> Tensor:
        logits = self.heads(self.backbone(self.tokens(ids, bag).flatten(1)))
        return nest(logits) if self.nested else logits


def nest(logits: Tensor) -> Tensor:
    """(B, K) to logits of chances that grow with the window: P_K = sigmoid(z_K), P_j = sigmoid(z_j) P_{j+1}.

    So a short window's label says something of the chance to convert at all, and something of how soon."""
    chances = nn.functional.logsigmoid(logits).flip(1).cumsum(1).flip(1)  # log P, (B, K)
    return chances - torch.log(-torch.expm1(chances.clamp(max=-1e-7)))


def plain(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy; zipper, single windows, vanilla and the future oracle."""
    return binary_cross_entropy_with_logits(logits, labels)


def fnw(logits: Tensor, labels: Tensor) -> Tensor:
    """Fake negatives weighted (Ktena et al., RecSys 2019): every impression is first a negative, a conversion follows
    as a positive. With p the model's own probability, positives weigh 1 + p and negatives (1 - p)(1 + p)."""
    p = logits.detach().sigmoid()
    weight = torch.where(labels > 0.5, 1 + p, (1 - p) * (1 + p))
    return binary_cross_entropy_with_logits(logits, labels, weight)


def es_dfm(logits: Tensor, labels: Tensor, delayed: Tensor, real: Tensor) -> Tensor:
    """ES-DFM (Yang et al., AAAI 2021): importance weights for samples that waited a while.

    delayed: P(converts after the wait), real: P(never converts | had not after the wait), both of models that learn
    from old impressions. Positives weigh 1 + delayed, negatives (1 + delayed) real."""
    weight = (1 + delayed) * torch.where(labels > 0.5, 1.0, real)
    return binary_cross_entropy_with_logits(logits, labels, weight)
