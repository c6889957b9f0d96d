"""The teacher: a Wukong, larger than any student, that gives a logit and an embedding, and reads what the user did
before where the log says it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from examples.exfm.errors import ExfmError
from examples.exfm.past import Past
from examples.exfm.stream.events import STATES, Schema
from examples.models.wukong import Wukong, WukongLayer
from examples.training import ID_DROPOUT


@dataclass(frozen=True)
class TeacherSize:
    """Of a Wukong. The last of `head` is the width of the embedding. past, heads: tokens that a history becomes, and
    heads of the attention that makes them; the log's schema says whether there is one."""

    width: int = 32
    layers: int = 2
    tokens: int = 16
    k: int = 16
    hidden: tuple[int, ...] = (256, 256)
    head: tuple[int, ...] = (256, 32)
    dropout: float = 0.1
    past: int = 4
    heads: int = 2

    @property
    def embedding(self) -> int:
        return self.head[-1]


SIZES = {
    "tiny": TeacherSize(8, 1, 4, 4, (16,), (16, 4), 0.0),
    "small": TeacherSize(),
    "large": TeacherSize(64, 3, 24, 24, (1024, 1024), (1024, 64)),
}


class Teacher(Wukong):
    """ids (B, fields) and bag (B, places) of int64 to logits (B,) and embeddings (B, E), what the last layer reads."""

    def __init__(self, schema: Schema, size: TeacherSize) -> None:
        hidden = tuple(ID_DROPOUT.get(name, 0.0) for name in schema.fields)
        said = asdict(size)
        tokens, heads = said.pop("past"), said.pop("heads")
        super().__init__(schema.cardinalities, schema.bag, id_dropout=hidden, **said)
        self.most, self.item, self.past = schema.most, 0, None
        if schema.history:
            self.item = schema.item
            self.past = Past(size.width, schema.history, heads, tokens)
            self.layers[0] = WukongLayer(
                len(schema.fields) + 1 + tokens, size.tokens, size.width, size.k, size.hidden, size.dropout
            )

    def forward(self, ids: Tensor, bag: Tensor) -> tuple[Tensor, Tensor]:
        if self.training:
            ids = ids.masked_fill(torch.rand_like(ids, dtype=torch.float) < self.id_dropout, 0)
        fields = self.table(ids + self.starts)
        x = torch.cat([fields, self.bag(bag[:, : self.most]).unsqueeze(1)], dim=1)
        if self.past is not None:
            events = bag[:, self.most :]
            items = self.table(events // STATES + self.starts[self.item])
            x = torch.cat([x, self.past(fields[:, self.item], items, events)], dim=1)
        for layer in self.layers:
            x = layer(x)
        *hidden, last = self.head
        embedding = x.flatten(1)
        for layer in hidden:
            embedding = layer(embedding)
        return last(embedding).squeeze(1), embedding


def described(schema: Schema, size: TeacherSize) -> dict[str, Any]:
    """What a snapshot says of its model, as JSON."""
    return {"schema": asdict(schema), "size": asdict(size)}


def built(said: dict[str, Any]) -> tuple[Teacher, Schema, TeacherSize]:
    """The model that a snapshot describes, with weights of its own."""
    try:
        schema = Schema(**{name: _tuple(value) for name, value in said["schema"].items()})
        size = size_of(said["size"])
    except (KeyError, TypeError) as error:
        raise ExfmError(f"a snapshot does not say what model it is of: {error}; publish it again") from None
    return Teacher(schema, size).eval(), schema, size


def size_of(said: dict[str, Any]) -> TeacherSize:
    """A size out of JSON."""
    return TeacherSize(**{name: _tuple(value) for name, value in said.items()})


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
