"""Wukong (Zhang et al., "Wukong: Towards a Scaling Law for Large-Scale Recommendation", ICML 2024).

Every feature is a token, a vector of width d. A stack of equal layers lets the tokens meet: each layer joins a
*factorization machine block* (new tokens from all pairwise products) with a *linear compression block* (new
tokens as weighted sums of the old), so layer i holds interactions of orders 1 to 2^i.

Shapes: B batch, n tokens, d their width, k columns of the compressed factorization machine.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class Wukong(nn.Module):
    """Categorical fields and one bag of categories to the logit of a click.

    cardinalities  number of ids of each field; id 0 stands for "unknown"
    bag            number of ids of the bag; id 0 fills it up and is skipped
    id_dropout     per field, how often training replaces an id with 0. It is how "unknown" learns its vector, and
                   keeps the model from leaning on ids that the future will not bring back.
    """

    def __init__(
        self,
        cardinalities: tuple[int, ...],
        bag: int,
        *,
        id_dropout: tuple[float, ...] | None = None,
        width: int = 64,
        layers: int = 2,
        tokens: int = 16,
        k: int = 16,
        hidden: tuple[int, ...] = (1024, 1024),
        head: tuple[int, ...] = (1024, 512),
        dropout: float = 0.1,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        fields = len(cardinalities)
        starts = torch.tensor((0, *cardinalities[:-1])).cumsum(0)
        self.register_buffer("starts", starts, persistent=False)  # all fields share one table
        self.register_buffer("id_dropout", torch.tensor(id_dropout or (0.0,) * fields), persistent=False)
        self.table = nn.Embedding(sum(cardinalities), width)
        self.bag = nn.EmbeddingBag(bag, width, mode="mean", padding_idx=0)
        nn.init.normal_(self.table.weight, std=0.01)
        nn.init.normal_(self.bag.weight, std=0.01)

        counts = [fields + 1] + [tokens] * (layers - 1)
        self.layers = nn.ModuleList(WukongLayer(n, tokens, width, k, hidden, dropout, activation) for n in counts)
        self.head = mlp(tokens * width, *head, 1, dropout=dropout, activation=activation)

    def forward(self, ids: Tensor, bag: Tensor) -> Tensor:
        """ids (B, fields) and bag (B, most) of int64 to logits (B,)."""
        if self.training:
            ids = ids.masked_fill(torch.rand_like(ids, dtype=torch.float) < self.id_dropout, 0)
        x = torch.cat([self.table(ids + self.starts), self.bag(bag).unsqueeze(1)], dim=1)  # (B, n, d)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.flatten(1)).squeeze(1)


class WukongLayer(nn.Module):
    """X' = LayerNorm(concat(FMB(X), LCB(X)) + X), half of the new tokens from each block.

    Where the number of tokens changes, the residual passes through a linear map over tokens.
    """

    def __init__(
        self,
        n: int,
        n_out: int,
        width: int,
        k: int,
        hidden: tuple[int, ...],
        dropout: float,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        from_lcb = n_out // 2
        self.fmb = FactorizationMachineBlock(n, n_out - from_lcb, width, k, hidden, dropout, activation)
        self.lcb = TokenMix(n, from_lcb)
        self.residual = TokenMix(n, n_out) if n != n_out else nn.Identity()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, d) to (B, n_out, d)."""
        return self.norm(torch.cat([self.fmb(x), self.lcb(x)], dim=1) + self.residual(x))


class FactorizationMachineBlock(nn.Module):
    """FMB(X) = reshape(MLP(LayerNorm(flatten(FM(X)))))."""

    def __init__(
        self,
        n: int,
        n_out: int,
        width: int,
        k: int,
        hidden: tuple[int, ...],
        dropout: float,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        self.compress = nn.Parameter(torch.randn(n, k) / n**0.5)
        self.norm = nn.LayerNorm(n * k)
        self.mlp = mlp(n * k, *hidden, n_out * width, dropout=dropout, activation=activation)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, d) to (B, n_out, d)."""
        pairs = factorization_machine(x, self.compress)
        return self.mlp(self.norm(pairs.flatten(1))).unflatten(1, (-1, self.width))


def factorization_machine(x: Tensor, y: Tensor) -> Tensor:
    """The pairwise products of the tokens, X X^T, compressed to k columns by Y: (B, n, d) and (n, k) to (B, n, k).

    Written as X (X^T Y): the same by associativity, at O(n k d) rather than O(n^2 d).
    """
    return x @ (x.transpose(1, 2) @ y)


class TokenMix(nn.Module):
    """LCB(X) = W X: every new token is a weighted sum of the old, (B, n, d) to (B, n_out, d)."""

    def __init__(self, n: int, n_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n, n_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.transpose(1, 2)).transpose(1, 2)


def mlp(*sizes: int, dropout: float, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers with an activation and dropout between them, none after the last."""
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise(sizes):
        layers += [nn.Linear(size_in, size_out), activation(), nn.Dropout(dropout)]
    return nn.Sequential(*layers[:-2])
