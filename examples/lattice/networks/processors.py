"""From features to tokens: categorical fields and numbers, events, and what a teacher knew.

Shapes: B rows, d width of a token, S event sources, L tokens of each, E fields of an event.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.kunlun.rote import angles, log_time
from examples.lattice.ktap.student import clip
from examples.lattice.networks.attention import Places
from examples.lattice.networks.norms import Norm, mlp
from examples.lattice.networks.size import Schema
from examples.models.dlrm import Tokens
from examples.models.wukong import TokenMix


class Categorical(nn.Module):
    """ids (B, F) and bag (B, most) to O_c (B, F + 1, d). Training hides ids, which is how "unknown" is learned."""

    def __init__(self, schema: Schema, width: int) -> None:
        super().__init__()
        self.tokens = Tokens(schema.cardinalities, schema.bag, width)
        hidden = schema.id_dropout or (0.0,) * len(schema.cardinalities)
        self.register_buffer("id_dropout", torch.tensor(hidden), persistent=False)

    def forward(self, ids: Tensor, bag: Tensor) -> Tensor:
        if self.training:
            ids = ids.masked_fill(torch.rand_like(ids, dtype=torch.float) < self.id_dropout, 0)
        return self.tokens(ids, bag)


class Dense(nn.Module):
    """Numbers (B, D) to O_d (B, D, d) by an MLP without biases.

    The norm after the first linear layer takes the size of what it reads away, so that of numbers alone only the
    direction would be seen: of a single one its sign. A constant 1 stands beside them; against it their size is seen
    [I]. That is so for numbers of about 1, as standardised ones are: beside very large ones the 1 is lost.
    """

    def __init__(self, count: int, width: int, rms: bool = True) -> None:
        super().__init__()
        self.mlp = mlp(count + 1, 2 * width, count * width, rms=rms)
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(torch.cat([x, x.new_ones(len(x), 1)], dim=1)).unflatten(1, (self.count, -1))


class Known(nn.Module):
    """A teacher's embedding (B, K) with hits (B,) to one token (B, 1, d): clipped, no flag on a miss (KTAP)."""

    def __init__(self, schema: Schema, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(schema.known + 1, width, bias=False)
        self.longest, self.drop = schema.clip, schema.drop

    def forward(self, embedding: Tensor, hit: Tensor) -> Tensor:
        if self.training:
            hit = hit & (torch.rand_like(hit, dtype=torch.float) >= self.drop)
        seen = hit.unsqueeze(1).to(embedding.dtype)
        return self.linear(torch.cat([clip(embedding, self.longest) * seen, seen], dim=1)).unsqueeze(1)


class Features(nn.Module):
    """All tokens that are no events: O_c, O_d and what a teacher knew, as far as the schema has them."""

    def __init__(self, schema: Schema, width: int, rms: bool = True) -> None:
        super().__init__()
        self.categorical = Categorical(schema, width)
        self.dense = Dense(schema.dense, width, rms) if schema.dense else None
        self.known = Known(schema, width) if schema.known else None

    def forward(self, ids: Tensor, bag: Tensor, dense: Tensor, known: Tensor, hit: Tensor) -> list[Tensor]:
        """Tokens (B, n, d) of each kind."""
        tokens = [self.categorical(ids, bag)]
        if self.dense is not None:
            tokens.append(self.dense(dense))
        if self.known is not None:
            tokens.append(self.known(known, hit))
        return tokens


class Mixing(nn.Module):
    """O_c, O_d and what the teacher knew to O_cd (B, n, d): every new token is a weighted sum of the old, normalised.

    The paper says that O_c and O_d are mixed, not how [I].
    """

    def __init__(self, tokens: int, width: int, rms: bool = True) -> None:
        super().__init__()
        self.mix, self.norm = TokenMix(tokens, tokens), Norm(width, rms)

    def forward(self, tokens: list[Tensor]) -> Tensor:
        x = torch.cat(tokens, dim=1)
        return self.norm(self.mix(x) + x)


class Events(nn.Module):
    """One source's events (B, L, E) to tokens (B, L, d): the sum of their fields' vectors through an MLP."""

    def __init__(self, cardinalities: tuple[int, ...], width: int, rms: bool = True) -> None:
        super().__init__()
        self.register_buffer("starts", torch.tensor((0, *cardinalities[:-1])).cumsum(0), persistent=False)
        self.table = nn.Embedding(sum(cardinalities), width)
        nn.init.normal_(self.table.weight, std=width**-0.5)
        self.mlp = mlp(width, 2 * width, width, rms=rms)

    def forward(self, events: Tensor) -> Tensor:
        x = self.table(events + self.starts).sum(2)
        return x + self.mlp(x)


class Sequences(nn.Module):
    """All sources, one after another: O_s (B, S L, d), and where each token stands for RoPE."""

    def __init__(self, schema: Schema, width: int, heads: int, rms: bool = True) -> None:
        super().__init__()
        self.sources = nn.ModuleList(Events(each, width, rms) for each in schema.sources)
        self.head = width // heads

    def forward(self, events: Tensor, seconds: Tensor) -> tuple[Tensor, Places]:
        """events (B, S, L, E), seconds (B, S, L) before the impression."""
        tokens = [source(of) for source, of in zip(self.sources, events.unbind(1), strict=True)]
        length = events.shape[2]
        index = torch.arange(length, device=events.device).repeat(len(tokens))
        return torch.cat(tokens, dim=1), angles(index, log_time(seconds.flatten(1)), self.head)
