"""From a sequence of any length to a few summary tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class PMA(nn.Module):
    """Pooling by multi-head attention: learned seeds ask, the sequence answers (InterFormer). One token a seed."""

    def __init__(self, width: int, heads: int, seeds: int, width_out: int) -> None:
        super().__init__()
        self.seeds = nn.Parameter(torch.randn(seeds, width))
        self.seed_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width_out, bias=False)
        self.heads = heads

    def forward(self, s: Tensor, mask: Tensor) -> Tensor:
        """S (B, T, width), mask (B, T) of its tokens; (B, seeds, width_out)."""
        q = self.q(self.seed_norm(self.seeds)).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        k, v = self.kv(self.norm(s)).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q = q.expand(s.shape[0], -1, -1, -1)
        h = scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        return self.out(h.transpose(1, 2).flatten(2))


class HSP(nn.Module):
    """Hierarchical seed pooling: more seeds than tokens look at the sequence, then SumKronLinear condenses them.

    It also takes the tokens to the context's width.
    """

    def __init__(self, width: int, heads: int, seeds: int, tokens: int, rank: int, width_out: int) -> None:
        super().__init__()
        self.pma = PMA(width, heads, seeds, width)
        self.condense = SumKronLinear(seeds, tokens, width, width_out, rank)

    def forward(self, s: Tensor, mask: Tensor) -> Tensor:
        """S (B, T, width), mask (B, T) of its tokens; (B, tokens, width_out)."""
        return self.condense(self.pma(s, mask))


class SumKronLinear(nn.Module):
    """Y = sum over i = 1..rank of Z_i^T X W_i: a linear map of all tokens and channels at once, from few weights.

    It is a sum of Kronecker products: rank * (tokens_in * tokens_out + width * width_out) weights, where the full map
    has their product.
    """

    def __init__(self, tokens_in: int, tokens_out: int, width: int, width_out: int, rank: int) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.randn(rank, tokens_in, tokens_out) / tokens_in**0.5)
        self.w = nn.Parameter(torch.randn(rank, width, width_out) / (rank * width) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, tokens_in, width) to (B, tokens_out, width_out)."""
        rank, tokens_in, tokens_out = self.z.shape
        mixed = self.z.permute(2, 0, 1).reshape(-1, tokens_in) @ x  # (B, tokens_out * rank, width)
        return mixed.unflatten(1, (tokens_out, rank)).flatten(2) @ self.w.flatten(0, 1)
