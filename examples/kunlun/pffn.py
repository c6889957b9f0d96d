"""The personalised feed-forward network: its weights are generated from each request's context.

Read as attention it is GDPA, generalized dot-product attention: the sequence asks, the generated weights are keys and
values, and an element-wise activation stands where softmax would: act(Q K^T) V * scale. The block around it is the one
that Meta deployed (its blog on GDPA; norms without weights, over all heads together):

    n   = LayerNorm(q)
    z   = gdpa(n, K, V) + n
    out = RMSNorm(z) + q
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, rms_norm

EPS = 1e-5


class GDPA(nn.Module):
    """PFFN(X_sum, S): keys and values from the context's summary X_sum, queries from the sequence S.

    keys tokens are mixed from the summary's tokens, then each becomes a key and a value for every head. The scale is
    1 / sqrt(keys), so that z starts out with as much of the one as of the other.
    """

    def __init__(
        self, width: int, heads: int, keys: int, context_tokens: int, context_width: int, *, bias: bool = True
    ) -> None:
        super().__init__()
        self.mix = nn.Linear(context_tokens, keys, bias)
        self.kv = nn.Linear(context_width, 2 * width, bias)
        self.heads, self.scale = heads, keys**-0.5

    def forward(self, x_sum: Tensor, s: Tensor) -> Tensor:
        """X_sum (B, context_tokens, context_width) and S (B, T, width) to (B, T, width)."""
        tokens = gelu(self.mix(x_sum.transpose(1, 2)).transpose(1, 2))
        k, v = self.kv(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        n = layer_norm(s, s.shape[-1:], eps=EPS)
        q = n.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        z = gdpa(q, k, v, self.scale).transpose(1, 2).flatten(2) + n
        return rms_norm(z, z.shape[-1:], eps=EPS) + s


def gdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """gelu(q k^T) v * scale for q (B, heads, T, d) and k, v (B, heads, keys, d)."""
    return gelu(q @ k.transpose(-1, -2)) @ v * scale


class FeedForward(nn.Module):
    """What stands in GDPA's place in the ablation: the same block and FLOPs, weights shared by all requests."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x_sum: Tensor, s: Tensor) -> Tensor:
        """S (B, T, width) to (B, T, width); the context is not looked at."""
        n = layer_norm(s, s.shape[-1:], eps=EPS)
        z = self.down(gelu(self.up(n))) + n
        return rms_norm(z, z.shape[-1:], eps=EPS) + s
