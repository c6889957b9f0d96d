"""Self-attention over a sequence, residual included, over the full length."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from examples.kunlun.rote import rotate


class SelfAttention(nn.Module):
    """S + W_o MHA(LayerNorm(S)), with ROTE on queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.heads = heads

    def forward(self, s: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """(B, T, width), angles of ROTE, mask (B, T) of what may be attended to; (B, T, width)."""
        q, k, v = self.qkv(self.norm(s)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        return s + self.out(out.transpose(1, 2).flatten(2))
