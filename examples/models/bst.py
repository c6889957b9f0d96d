"""BST (Chen et al., "Behavior Sequence Transformer for E-commerce Recommendation in Alibaba", DLP-KDD 2019).

The target item stands at the end of the user's history; attention mixes all of them, and an MLP reads the whole
sequence, flat, beside the other features.

Shapes: B batch, S length of the history, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.models.sequence import Block, items
from examples.models.wukong import mlp


class BST(nn.Module):
    """History, target and dense features to a logit; count and length as for SASRec. dense: how many features."""

    def __init__(
        self,
        count: int,
        length: int,
        dense: int,
        *,
        width: int = 64,
        layers: int = 1,
        heads: int = 4,
        hidden: tuple[int, ...] = (512, 256),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.items, self.places = items(count, width), nn.Embedding(length + 1, width)
        nn.init.normal_(self.places.weight, std=0.1)
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width, dropout) for _ in range(layers))
        self.head = mlp((length + 1) * width + dense, *hidden, 1, dropout=dropout)

    def forward(self, history: Tensor, target: Tensor, dense: Tensor) -> Tensor:
        """history (B, S) and target (B,) of int64, dense (B, features): logits (B,)."""
        sequence = torch.cat([history, target.unsqueeze(1)], dim=1)
        x = self.items(sequence) + self.places.weight
        mask = (sequence != 0)[:, None, None, :]
        for block in self.blocks:
            x = block(x, mask)
        return self.head(torch.cat([x.flatten(1), dense], dim=1)).squeeze(1)
