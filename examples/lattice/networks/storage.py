"""Extended Context Storage: what a layer found is there for every layer after it, not for the next alone.

The paper calls it a global key-value store of intermediate activations with DenseNet-style access; no rule for what is
written or read is published. Here the processors and every fusion block write their tokens under a name, and each later
layer reads all of them, side by side [I]: the transformer block as what its sequence attends to and what its weights
are generated from, the fusion block as tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Storage:
    """Tokens (B, n, d) by name, in the order in which they were written. extended: False keeps the last alone."""

    def __init__(self, extended: bool = True) -> None:
        self.extended = extended
        self.tokens: dict[str, Tensor] = {}

    def write(self, name: str, tokens: Tensor) -> None:
        if name in self.tokens:
            raise KeyError(f"{name} has been written already; it holds {tuple(self.tokens[name].shape)}")
        if not self.extended:
            self.tokens.clear()
        self.tokens[name] = tokens

    def read(self) -> Tensor:
        """(B, all tokens, d)."""
        return torch.cat(list(self.tokens.values()), dim=1)
