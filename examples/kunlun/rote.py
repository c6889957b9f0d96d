"""ROTE, rotary temporal embedding: attention that knows how many events and how much time lie between two tokens.

A pair of a head's channels is turned by an angle in proportion to the token's place, so that the product of a query
and a key depends on the difference of their places only (RoPE). Here one half of the pairs is turned by the token's
index and the other by tau = log(1 + seconds / t_scale), both counted from the request backwards. Kunlun, section
"Preprocessing": the combination of both is ours, the paper gives the idea only.
"""

from __future__ import annotations

import torch
from torch import Tensor

T_SCALE = 60.0  # seconds: most of a user's ratings here are a few seconds to minutes apart
BASE = 10_000.0


def log_time(seconds: Tensor, t_scale: float = T_SCALE) -> Tensor:
    """tau, the logarithm of time: moments ago are told apart by seconds, months ago by weeks."""
    return torch.log1p(seconds / t_scale)


def angles(index: Tensor, tau: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """cos and sin (B, 1, T, width / 2) for heads of this width, from index (T,) and tau (B, T). width / 4 is whole."""
    if width % 4:
        raise ValueError(
            f"ROTE turns channels in pairs, half by index and half by time: expected width % 4 == 0, got {width}"
        )
    pairs = width // 4
    speed = BASE ** (-torch.arange(pairs, device=tau.device) / pairs)
    by_index = (index[:, None] * speed).expand(tau.shape[0], -1, -1)
    both = torch.cat([by_index, tau[..., None] * speed], dim=-1).unsqueeze(1)
    return both.cos(), both.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys (B, heads, T, width), each pair turned by its angle, which may be known more exactly than x."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x.dtype)
