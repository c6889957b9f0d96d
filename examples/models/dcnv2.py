"""DCN-V2 (Wang et al., "DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale Learning to Rank
Systems", WWW 2021).

All vectors of a row are joined into one, x0. Each cross layer multiplies it once more into what came before, so layer i
holds interactions of all orders up to i + 1. A plain MLP reads x0 beside it (the paper's *parallel* structure), and a
linear layer joins both.

Shapes: B batch, n tokens (one a field, one for the bag), d their width, x0 (B, n d).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.models.dlrm import Tokens
from examples.models.wukong import mlp


class DCNv2(nn.Module):
    """Categorical fields and one bag of categories to the logit of a click; arguments as for DLRM.

    layers  number of cross layers
    deep    widths of the MLP
    """

    def __init__(
        self,
        cardinalities: tuple[int, ...],
        bag: int,
        *,
        width: int = 64,
        layers: int = 3,
        deep: tuple[int, ...] = (1024, 1024, 512),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.tokens = Tokens(cardinalities, bag, width)
        size = (len(cardinalities) + 1) * width
        self.cross = nn.ModuleList(CrossLayer(size) for _ in range(layers))
        self.deep = nn.Sequential(mlp(size, *deep, dropout=dropout), nn.ReLU())
        self.head = nn.Linear(size + deep[-1], 1)

    def forward(self, ids: Tensor, bag: Tensor) -> Tensor:
        """ids (B, fields) and bag (B, most) of int64 to logits (B,)."""
        x0 = self.tokens(ids, bag).flatten(1)
        x = x0
        for layer in self.cross:
            x = layer(x0, x)
        return self.head(torch.cat([x, self.deep(x0)], dim=1)).squeeze(1)


class CrossLayer(nn.Module):
    """x' = x0 * (W x + b) + x, elementwise product, W square."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        """(B, n d) twice to (B, n d)."""
        return x0 * self.linear(x) + x
