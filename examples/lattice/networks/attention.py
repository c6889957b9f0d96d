"""Attention without biases: over a sequence itself, or from a sequence to the context's tokens.

QK-norm: queries and keys have length sqrt(width of a head) before they meet, so that no modality's attention drowns
another's. RoPE turns them by their places; Kunlun's ROTE is used, which counts events and time (examples/kunlun).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from examples.kunlun.rote import rotate
from examples.lattice.networks.norms import Norm

Places = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """W_o MHA(W_q Norm(x), W_kv Norm(context)) of sequence tokens; without the residual."""

    def __init__(self, width: int, heads: int, qk_norm: bool, rms: bool) -> None:
        super().__init__()
        self.norm, self.norm_context = Norm(width, rms), Norm(width, rms)
        self.q, self.kv = nn.Linear(width, width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.heads = heads
        self.norm_q, self.norm_k = (Norm(width // heads) if qk_norm else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None, places: Places | None = None) -> Tensor:
        """x (B, T, d), context (B, C, d), mask (B, C) of what may be attended to, places if both are one sequence."""
        q = self.q(self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(self.norm_context(context)).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.norm_q(q), self.norm_k(k)
        if places is not None:
            q, k = rotate(q, *places), rotate(k, *places)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None, :])
        return self.out(mixed.transpose(1, 2).flatten(2))
