"""DIN (Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018).

An MLP weighs each item of the history by how it fits the target; the weighted sum, not normalized, is the interest.

Shapes: B batch, S length of the history, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.models.sequence import items
from examples.models.wukong import mlp


class DIN(nn.Module):
    """History, target and dense features to a logit; arguments as for BST. fit: hidden widths of the weighing MLP."""

    def __init__(
        self,
        count: int,
        dense: int,
        *,
        width: int = 64,
        fit: tuple[int, ...] = (128, 64),
        hidden: tuple[int, ...] = (512, 256),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.items = items(count, width)
        self.fit = mlp(4 * width, *fit, 1, dropout=0.0)
        self.head = mlp(2 * width + dense, *hidden, 1, dropout=dropout)

    def forward(self, history: Tensor, target: Tensor, dense: Tensor) -> Tensor:
        """history (B, S) and target (B,) of int64, dense (B, features): logits (B,)."""
        items, wanted = self.items(history), self.items(target)
        each = wanted.unsqueeze(1).expand_as(items)
        weights = self.fit(torch.cat([items, each, items - each, items * each], dim=2)).squeeze(2)
        weights = weights.masked_fill(history == 0, 0.0)
        interest = (weights.unsqueeze(1) @ items).squeeze(1)
        return self.head(torch.cat([interest, wanted, dense], dim=1)).squeeze(1)
