"""DLRM (Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems", 2019).

Every feature is a vector of width d. Dense features pass through a bottom MLP first; then all vectors meet in pairwise
dot products, and a top MLP reads the products beside the dense vector.

Shapes: B batch, n tokens (one a field, one for the bag), d their width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.models.wukong import mlp


class DLRM(nn.Module):
    """Categorical fields and one bag of categories to the logit of a click.

    cardinalities  number of ids of each field; id 0 stands for "unknown"
    bag            number of ids of the bag; id 0 fills it up and is skipped. There are no dense features in this data:
                   the bag's mean vector, the one input that is not a single id, takes their place.
    bottom, top    hidden widths of the two MLPs
    """

    def __init__(
        self,
        cardinalities: tuple[int, ...],
        bag: int,
        *,
        width: int = 64,
        bottom: tuple[int, ...] = (512, 512),
        top: tuple[int, ...] = (1024, 1024, 512),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.tokens = Tokens(cardinalities, bag, width)
        n = len(cardinalities) + 1
        self.bottom = mlp(width, *bottom, width, dropout=dropout)
        self.register_buffer("pairs", torch.triu_indices(n, n, offset=1), persistent=False)
        self.top = mlp(n * (n - 1) // 2 + width, *top, 1, dropout=dropout)

    def forward(self, ids: Tensor, bag: Tensor) -> Tensor:
        """ids (B, fields) and bag (B, most) of int64 to logits (B,)."""
        sparse, dense = self.tokens(ids, bag).tensor_split([-1], dim=1)  # (B, n - 1, d), (B, 1, d)
        dense = self.bottom(dense.squeeze(1))  # (B, d)
        x = torch.cat([sparse, dense.unsqueeze(1)], dim=1)  # (B, n, d)
        products = (x @ x.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]  # (B, n (n - 1) / 2)
        return self.top(torch.cat([products, dense], dim=1)).squeeze(1)


class Tokens(nn.Module):
    """A vector for every field, all fields in one table, and the mean vector of the bag as the last."""

    def __init__(self, cardinalities: tuple[int, ...], bag: int, width: int) -> None:
        super().__init__()
        self.register_buffer("starts", torch.tensor((0, *cardinalities[:-1])).cumsum(0), persistent=False)
        self.table = nn.Embedding(sum(cardinalities), width)
        self.bag = nn.EmbeddingBag(bag, width, mode="mean", padding_idx=0)
        for rows in (*self.table.weight.split(cardinalities), self.bag.weight):  # as in the authors' own code
            nn.init.uniform_(rows, -(len(rows) ** -0.5), len(rows) ** -0.5)

    def forward(self, ids: Tensor, bag: Tensor) -> Tensor:
        """ids (B, fields) and bag (B, most) of int64 to (B, fields + 1, d)."""
        return torch.cat([self.table(ids + self.starts), self.bag(bag).unsqueeze(1)], dim=1)
