"""Where context and sequences meet: the context's summary, and the mixture of Wukong experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.models.wukong import TokenMix, WukongLayer


class WeightGeneration(nn.Module):
    """X_sum: the context's tokens condensed to a few, then a gated MLP on each, sigmoid(y * MLP(y)) (InterFormer)."""

    def __init__(self, tokens_in: int, tokens_out: int, width: int) -> None:
        super().__init__()
        self.mix = TokenMix(tokens_in, tokens_out)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.gate = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens_in, width) to (B, tokens_out, width)."""
        x = self.mix(x)
        y = x + self.mlp(x)
        return self.norm(y * torch.sigmoid(self.gate(y)))


class WukongExperts(nn.Module):
    """Global interaction: the tokens are dealt out to as many groups as there are experts, one Wukong layer each.

    By feature, not by routing: group i holds tokens i, i + experts, ..., so each sees context and every sequence. The
    next layer's weight generation mixes what the experts found.
    """

    def __init__(self, tokens: int, width: int, experts: int, k: int, hidden: tuple[int, ...], dropout: float) -> None:
        super().__init__()
        if tokens % experts:
            raise ValueError(f"{tokens} tokens cannot be dealt out evenly to {experts} experts")
        n = tokens // experts
        self.experts = nn.ModuleList(WukongLayer(n, n, width, k, hidden, dropout) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens, width) to (B, tokens, width)."""
        groups = x.unflatten(1, (-1, len(self.experts))).unbind(2)
        return torch.cat([expert(group) for expert, group in zip(self.experts, groups, strict=True)], dim=1)
