"""SASRec (Kang and McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018): the next item from those before.

Causal attention over a user's history; the score of an item is the product of its embedding with the last state.

Shapes: B batch, S length of the history, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.models.sequence import Block, items


class SASRec(nn.Module):
    """Histories and candidates to logits. count: items, the 0th of which is none. length: of the longest history."""

    def __init__(
        self, count: int, length: int, *, width: int = 64, layers: int = 2, heads: int = 2, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.items, self.places = items(count, width), nn.Embedding(length, width)
        nn.init.normal_(self.places.weight, std=0.1)
        self.blocks = nn.ModuleList(Block(width, heads, 4 * width, dropout) for _ in range(layers))
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)

    def states(self, history: Tensor) -> Tensor:
        """history (B, S) of int64 to what is known of the user after each item, (B, S, d)."""
        size = history.shape[1]
        x = self.dropout(self.items(history) * self.items.embedding_dim**0.5 + self.places.weight[:size])
        causal = torch.ones(size, size, dtype=torch.bool, device=history.device).tril()
        mask = causal & (history != 0)[:, None, None, :] | torch.eye(size, dtype=torch.bool, device=history.device)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)

    def forward(self, history: Tensor, candidates: Tensor) -> Tensor:
        """candidates (B, S, n) of int64, for each place: logits (B, S, n)."""
        return (self.items(candidates) @ self.states(history).unsqueeze(-1)).squeeze(-1)
