"""Two blocks that large models are made of: a stack of linear, norm and activation, and multi-head attention.

Shapes: B batch, S sequence, d width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


def mlp_stack(width: int = 512, layers: int = 4) -> nn.Sequential:
    """`layers` times linear, LayerNorm, ReLU; (B, d) to (B, d)."""
    blocks = ((nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU()) for _ in range(layers))
    return nn.Sequential(*(module for block in blocks for module in block))


class MultiHeadAttention(nn.Module):
    """LayerNorm(x + attention(x)), one product for queries, keys and values."""

    def __init__(self, width: int = 256, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, d) to (B, S, d)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, S, d / heads) each
        mixed = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.norm(x + self.out(mixed))
