"""The fusion block of a pair, DHEN's ensemble with Wukong's two interactions in it, without biases:

X' = Norm([FMB(X) || LCB(X)] + shortcut(X))
FMB(X) = MLP(RMSNorm(flatten(X (X^T Y))))     half of the new tokens
LCB(X) = W X                                  the other half
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.lattice.networks.norms import Norm, mlp
from examples.models.wukong import TokenMix, factorization_machine


class FusionBlock(nn.Module):
    """n tokens to n_out; k columns of the factorization machine, an MLP of these hidden widths."""

    def __init__(self, n: int, n_out: int, width: int, k: int, hidden: tuple[int, ...], rms: bool = True) -> None:
        super().__init__()
        from_lcb = n_out // 2
        self.compress = nn.Parameter(torch.randn(n, k) / n**0.5)
        self.pairs = Norm(n * k, rms)
        self.fmb = mlp(n * k, *hidden, (n_out - from_lcb) * width, rms=rms)
        self.lcb, self.shortcut = TokenMix(n, from_lcb), TokenMix(n, n_out)
        self.norm = Norm(width, rms)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, d) to (B, n_out, d)."""
        pairs = self.pairs(factorization_machine(x, self.compress).flatten(1))
        fmb = self.fmb(pairs).unflatten(1, (-1, self.width))
        return self.norm(torch.cat([fmb, self.lcb(x)], dim=1) + self.shortcut(x))
