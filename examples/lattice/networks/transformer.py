"""The transformer block of a pair: the sequence looks at itself, then at the context, then passes two networks.

S = S + SelfAttention(S)                  RoPE, QK-norm; reads nothing of the candidate in the first layer
S = S + CrossAttention(S, context)
S = GDPA(context, S)                      weights generated from the context: Kunlun's PFFN, residual included
S = S + FFN_domain(Norm(S))               weights of the row's domain
"""

from __future__ import annotations

from torch import Tensor, nn

from examples.kunlun.pffn import GDPA
from examples.lattice.networks.attention import Attention, Places
from examples.lattice.networks.norms import Norm, mlp
from examples.lattice.networks.size import Size
from examples.lattice.networks.untie import Untied


class TransformerBlock(nn.Module):
    """context: how many tokens the sequence sees of it. domains: which copy of the FFN each domain has."""

    def __init__(self, size: Size, context: int, domains: tuple[int, ...]) -> None:
        super().__init__()
        width, rms = size.width, size.rms
        self.itself = Attention(width, size.heads, size.qk_norm, rms)
        self.across = Attention(width, size.heads, size.qk_norm, rms)
        self.generated = GDPA(width, size.heads, size.keys, context, width, bias=False)
        self.norm = Norm(width, rms)
        self.ffn = Untied(lambda: mlp(width, size.ffn, width, rms=rms), domains)

    def forward(self, s: Tensor, context: Tensor, mask: Tensor, places: Places, domain: Tensor) -> Tensor:
        """s (B, T, d) with mask (B, T) and places, context (B, C, d), domain (B,); (B, T, d)."""
        s = s + self.itself(s, s, mask, places)
        s = s + self.across(s, context)
        s = self.generated(context, s)
        return s + self.ffn(domain, self.norm(s))
