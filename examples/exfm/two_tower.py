"""Two towers: what a user and an item say apart, for retrieval.

The backbone gives u * v, so a linear head on it is a dot product whose weights fold into the user's vector: an index of
items serves it as it serves any dot product.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.models.dlrm import Tokens
from examples.models.wukong import mlp

ITEM_FIELDS = frozenset({"item", "year", "acclaim", "category"})
"""Fields of the item; the bag is the item's too, and all others are the user's."""


class TwoTower(nn.Module):
    """ids (B, fields) and bag (B, most) of int64 to u * v (B, width)."""

    def __init__(
        self,
        fields: tuple[str, ...],
        cardinalities: tuple[int, ...],
        bag: int,
        *,
        width: int = 32,
        hidden: tuple[int, ...] = (64,),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        of_item = torch.tensor([name in ITEM_FIELDS for name in fields])
        if of_item.all() or not of_item.any():
            raise ValueError(
                f"two towers need fields of both sides; the item's are {sorted(ITEM_FIELDS)}, got {fields}"
            )
        self.register_buffer("item_fields", of_item.nonzero().squeeze(1), persistent=False)
        self.register_buffer("user_fields", (~of_item).nonzero().squeeze(1), persistent=False)
        self.tokens = Tokens(cardinalities, bag, width)
        self.user = mlp(int((~of_item).sum()) * width, *hidden, width, dropout=dropout)
        self.item = mlp((int(of_item.sum()) + 1) * width, *hidden, width, dropout=dropout)

    def forward(self, ids: Tensor, bag: Tensor) -> Tensor:
        tokens = self.tokens(ids, bag)
        user = self.user(tokens[:, self.user_fields].flatten(1))
        item = self.item(torch.cat([tokens[:, self.item_fields], tokens[:, -1:]], dim=1).flatten(1))
        return user * item
