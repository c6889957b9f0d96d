"""A small model with a head a window, and the losses of the ways to learn from labels that are late."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, linear

from examples.models.dlrm import Tokens
from examples.models.wukong import mlp


class Heads(nn.Module):
    """One backbone, K linear heads: ids (B, F) and bag (B, most) to logits (B, K)."""

    def __init__(
        self,
        cardinalities: tuple[int, ...],
        bag: int,
        heads: int,
        *,
        width: int = 8,
        hidden: tuple[int, ...] = (128, 64),
    ) -> None:
        super().__init__()
        self.tokens = Tokens(cardinalities, bag, width)
        self.backbone = nn.Sequential(mlp((len(cardinalities) + 1) * width, *hidden, dropout=0.0), nn.ReLU())
        self.heads = nn.Linear(hidden[-1], heads)

    def hidden(self, ids: Tensor, bag: Tensor) -> Tensor:
        """(B, d)"""
        return self.backbone(self.tokens(ids, bag).flatten(1))

    def forward(self, ids: Tensor, bag: Tensor) -> Tensor:
        return self.heads(self.hidden(ids, bag))


class NestedHeads(Heads):
    """Heads of which the last says whether an impression converts at all, the others how soon if it does: `nest` makes
    chances of their scores. The paper has plain heads; this is ours [I].

    The others read the backbone but do not change it, and begin with nothing. Free to learn with it, they took part of
    what fresh labels say of the chance to convert, which then was missing from the head that serves."""

    def __init__(self, cardinalities: tuple[int, ...], bag: int, heads: int) -> None:
        super().__init__(cardinalities, bag, heads)
        nn.init.zeros_(self.heads.weight[:-1])

    def scores(self, ids: Tensor, bag: Tensor) -> Tensor:
        """(B, K): how soon within each shorter window, then whether at all."""
        hidden = self.hidden(ids, bag)
        weight, bias = self.heads.weight, self.heads.bias
        soon, whether = linear(hidden.detach(), weight[:-1], bias[:-1]), linear(hidden, weight[-1:], bias[-1:])
        return torch.cat([soon, whether], dim=1)

    def forward(self, ids: Tensor, bag: Tensor) -> Tensor:
        return nest(self.scores(ids, bag))


def nest(scores: Tensor) -> Tensor:
    """(B, K) to logits of chances that grow with the window: P_K = sigmoid(z_K), P_j = sigmoid(z_j) P_{j+1}.

    So a short window's label says something of the chance to convert at all, once it is known how soon that is."""
    chances = nn.functional.logsigmoid(scores).flip(1).cumsum(1).flip(1)  # log P, (B, K)
    return chances - torch.log(-torch.expm1(chances.clamp(max=-1e-7)))


def plain(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy; zipper, single windows, vanilla and the future oracle."""
    return binary_cross_entropy_with_logits(logits, labels)


def nested(scores: Tensor, heads: Tensor, labels: Tensor, within: Tensor) -> Tensor:
    """Cross-entropy of what is known of impressions when their windows `heads` (B,) close.

    scores (B, K), labels (B,); within (B, K) bool: converted within each window, read only where it has closed. The
    label teaches whether one converts, with how soon as it is known by now; conversions teach how soon they came."""
    known = torch.cat([scores[:, :-1].detach(), scores[:, -1:]], dim=1)
    own = nest(known).gather(1, heads[:, None]).squeeze(1)
    closed = torch.arange(within.shape[1] - 1, device=heads.device) < heads[:, None]
    came = closed & within[:, 1:]  # within the next window, so that this one's question is asked
    soon = binary_cross_entropy_with_logits(scores[:, :-1], within[:, :-1].to(scores.dtype), reduction="none")
    return binary_cross_entropy_with_logits(own, labels) + soon.masked_fill(~came, 0.0).sum() / len(scores)


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
