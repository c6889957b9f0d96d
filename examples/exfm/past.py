"""What a user did before, as tokens that meet the other features: what the teacher has and a student lacks.

Shapes: B batch, H places of a history, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from examples.exfm.stream.events import STATES


class Past(nn.Module):
    """A history to `tokens` tokens: one of what is like the item that is shown, the others of whatever learned seeds
    ask for.

    An event is its item's vector, in the table that the item itself has, with a vector for how it ended and one for
    how long ago it was, in events. A vector that is always there stands for "nothing", so an empty history has an
    answer, too.
    """

    def __init__(self, width: int, history: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.heads, self.tokens = heads, tokens
        self.state, self.place = nn.Embedding(STATES, width), nn.Embedding(history, width)
        self.seeds = nn.Parameter(torch.randn(tokens - 1, width))
        self.nothing = nn.Parameter(torch.randn(1, width))
        self.before, self.shown_before = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        for table in (self.state, self.place):
            nn.init.normal_(table.weight, std=0.01)

    def forward(self, shown: Tensor, items: Tensor, events: Tensor) -> Tensor:
        """shown (B, d), the item's vector; items (B, H, d), those of the events; events (B, H) int64, as `event` has
        them; (B, tokens, d)."""
        x = items + self.state(events % STATES) + self.place.weight
        x = torch.cat([self.nothing.expand(len(x), 1, -1), self.before(x)], dim=1)
        there = torch.cat([torch.ones_like(events[:, :1], dtype=torch.bool), events > 0], dim=1)
        asking = torch.cat([self.shown_before(shown).unsqueeze(1), self.seeds.expand(len(x), -1, -1)], dim=1)
        q = self.q(asking).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        found = scaled_dot_product_attention(q, k, v, attn_mask=there[:, None, None, :])
        return self.out(found.transpose(1, 2).flatten(2))
