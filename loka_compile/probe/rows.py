"""Real rows, drawn again: for operands that no model here describes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SAVED = 96
"""Rows a profile stores. In bfloat16, 1024 features are 192 KiB."""


@dataclass(frozen=True, eq=False)
class Rows:
    """rows: (n, F) bfloat16, a uniform sample of those seen."""

    rows: Tensor

    def __post_init__(self) -> None:
        if self.rows.dim() != 2 or not len(self.rows):
            raise ValueError(f"expected some rows, got a tensor of shape {tuple(self.rows.shape)}")

    @property
    def features(self) -> int:
        return self.rows.shape[1]

    @classmethod
    def of(cls, rows: Tensor) -> Rows:
        limit = torch.finfo(torch.bfloat16).max
        return cls(rows[:SAVED].clamp(-limit, limit).bfloat16())

    def draw(self, count: int, generator: torch.Generator, features: Tensor | None = None) -> Tensor:
        """`count` rows with replacement, (count, F) in float32.

        The bits that bfloat16 has not are drawn: a product of values that are exact in 16 bits would flatter bf16.
        """
        picked = self.rows[torch.randint(len(self.rows), (count,), generator=generator, device="cpu")]
        picked = (picked if features is None else picked[:, features]).float()
        drawn = torch.rand(picked.shape, generator=generator, dtype=torch.float32, device="cpu")
        return picked * (1 + (drawn - 0.5) * 2.0**-8)
