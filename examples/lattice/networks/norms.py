"""What stands between linear layers: SwishRMSNorm, or LayerNorm with SiLU, which the ablation compares it with.

Linear layers and norms have no bias, as in the paper: activations stay bounded, and low precision serves them.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, rms_norm, silu

EPS = 1e-5


class Norm(nn.Module):
    """RMSNorm with a gain, or LayerNorm with a gain where `rms` is False."""

    def __init__(self, width: int, rms: bool = True) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.rms = rms

    def forward(self, x: Tensor) -> Tensor:
        if self.rms:
            return rms_norm(x, self.gain.shape, self.gain, EPS)
        return layer_norm(x, self.gain.shape, self.gain, None, EPS)


class SwishRMSNorm(Norm):
    """n * sigmoid(n) of n = RMSNorm(x): no mean is subtracted, so nothing cancels."""

    def forward(self, x: Tensor) -> Tensor:
        return silu(super().forward(x))


def mlp(*sizes: int, rms: bool = True) -> nn.Sequential:
    """Linear layers without bias, (Swish)RMSNorm between them, nothing after the last."""
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise(sizes):
        layers += [nn.Linear(size_in, size_out, bias=False), SwishRMSNorm(size_out, rms)]
    return nn.Sequential(*layers[:-1])
