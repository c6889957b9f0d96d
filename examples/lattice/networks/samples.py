"""A data set as Lattice Networks read it: features, what the user did before, domains, what a teacher knew.

MovieLens: two event sources as Kunlun has them, the films a user liked and those they did not, newest first, seconds
before the impression. Clothing: the review's words in their order. Every sequence begins with a token of its own (ids
0), so that none is empty. The domain is a field as well, so that models without a place for it know it too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from examples import movielens as ratings
from examples.kunlun import data as histories
from examples.lattice import data
from examples.lattice.data import Data, Rows
from examples.lattice.ktap.record import Knowledge, nothing
from examples.lattice.networks.loss import Target
from examples.lattice.networks.size import Schema
from examples.training import ID_DROPOUT

LENGTHS = {"movielens": 8, "clothing": 16}
CHUNK = 8192


class Inputs(NamedTuple):
    """B rows, S sources, L tokens of each, E fields of an event.

    ids (B, F), bag (B, most) int64; dense (B, D); events (B, S, L, E) int64; seconds (B, S, L) before the impression;
    mask (B, S, L) bool; domain (B,) int64; known (B, K) a teacher's embedding; hit (B,) bool whether there is one.
    """

    ids: Tensor
    bag: Tensor
    dense: Tensor
    events: Tensor
    seconds: Tensor
    mask: Tensor
    domain: Tensor
    known: Tensor
    hit: Tensor


@dataclass(frozen=True, eq=False)
class Samples:
    """All rows, those to learn from first: `cut` of them. labels (N, T), nan where a row says nothing about a task."""

    name: str
    inputs: Inputs
    labels: Tensor
    cut: int
    schema: Schema
    fields: tuple[str, ...]
    domains: tuple[str, ...]
    tasks: tuple[str, ...]
    knowledge: Knowledge | None = None

    @property
    def train(self) -> Tensor:
        return torch.arange(self.cut)

    @property
    def test(self) -> Tensor:
        return torch.arange(self.cut, len(self.labels))

    def batch(self, rows: Tensor) -> tuple[Inputs, Target]:
        """These rows, as a model reads them and as it is judged on them."""
        knowledge = None if self.knowledge is None else self.knowledge[rows]
        return Inputs(*(column[rows] for column in self.inputs)), Target(self.labels[rows], knowledge)

    def taught(self, knowledge: Knowledge) -> Samples:
        """With what a teacher knew of each row."""
        inputs = self.inputs._replace(known=knowledge.embedding, hit=knowledge.hit)
        schema = replace(self.schema, known=knowledge.embedding.shape[1])
        return replace(self, inputs=inputs, schema=schema, knowledge=knowledge)

    def with_fields(self, names: tuple[str, ...], bag: bool = True) -> Samples:
        """With these fields alone, and with or without the bag; the domain always stays."""
        columns = [place for place, field in enumerate(self.fields) if field in names or field == "domain"]
        inputs = self.inputs._replace(ids=self.inputs.ids[:, columns])
        if not bag:
            inputs = inputs._replace(bag=torch.zeros_like(inputs.bag[:, :1]))
        schema = replace(
            self.schema,
            cardinalities=tuple(self.schema.cardinalities[i] for i in columns),
            id_dropout=tuple(self.schema.id_dropout[i] for i in columns) if self.schema.id_dropout else (),
        )
        return replace(self, inputs=inputs, schema=schema, fields=tuple(self.fields[i] for i in columns))

    def only(self, portfolios: list[tuple[int, int]]) -> Samples:
        """With the labels of these (domain, task) alone."""
        own = torch.zeros(len(self.domains), len(self.tasks), dtype=torch.bool)
        for domain, task in portfolios:
            own[domain, task] = True
        return replace(self, labels=self.labels.masked_fill(~own[self.inputs.domain], torch.nan))

    def portfolio(self, domain: int, task: int) -> Samples:
        """The rows of one domain with the labels of one task."""
        own = self.rows((self.inputs.domain == domain).nonzero()[:, 0])
        knowledge = own.knowledge and Knowledge(
            own.knowledge.embedding, own.knowledge.logits[:, [task]], own.knowledge.hit
        )
        schema = replace(self.schema, tasks=1)
        return replace(own, labels=own.labels[:, [task]], schema=schema, tasks=(self.tasks[task],), knowledge=knowledge)

    def few(self, every: int) -> Samples:
        """One row of so many, for a rehearsal."""
        return self.rows(torch.arange(0, len(self.labels), every))

    def last(self, count: int) -> Samples:
        """The last rows alone, four fifths of them to learn from; for a rehearsal."""
        found = self.rows(torch.arange(len(self.labels) - count, len(self.labels)))
        return replace(found, cut=count * 4 // 5)

    def rows(self, which: Tensor) -> Samples:
        """These rows alone, which stay in their order."""
        knowledge = None if self.knowledge is None else self.knowledge[which]
        inputs = Inputs(*(column[which] for column in self.inputs))
        cut = int((which < self.cut).sum())
        return replace(self, inputs=inputs, labels=self.labels[which], cut=cut, knowledge=knowledge)


def load(name: str, seed: int = 0) -> Samples:
    """MovieLens or clothing; `seed` draws clothing's split."""
    return movielens() if name == "movielens" else clothing(seed)


def movielens(length: int = LENGTHS["movielens"]) -> Samples:
    """100,000 ratings with at most length - 1 liked and as many disliked films before each."""
    found = data.movielens()
    rows = found.everything()
    hidden = tuple(ID_DROPOUT.get(field, 0.0) for field in found.fields)
    liked = rows.labels[:, 0] == 1
    stars = torch.tensor([int(float(row["rating"])) for row in ratings.ratings_by_time()])
    sources = tuple(histories.find(rows.users, rows.times, chosen) for chosen in (liked, ~liked))
    past = histories.Histories(
        rows.ids, rows.dense, stars, rows.times, rows.labels[:, 0], sources, 0, found.cardinalities
    )
    each = [[past.events(source, part, length, length) for source in sources] for part in _chunks(len(rows))]
    events, seconds, masks = [], [], []
    for source in range(len(sources)):
        of = [parts[source] for parts in each]
        events.append(torch.stack([torch.cat([p.items for p in of]), torch.cat([p.stars for p in of])], dim=-1))
        seconds.append(torch.cat([p.seconds for p in of]))
        masks.append(torch.cat([p.mask for p in of]))
    joined = torch.stack(events, 1), torch.stack(seconds, 1), torch.stack(masks, 1)
    cardinalities = (found.cardinalities[ratings.FIELDS.index("item")], histories.STARS)
    return _samples(found, rows, *joined, (cardinalities,) * len(sources), hidden)


def clothing(seed: int = 0, length: int = LENGTHS["clothing"]) -> Samples:
    """Reviews; the first length - 1 different words are the sequence, all of them the bag."""
    found = data.clothing(seed)
    rows = found.everything()
    words = torch.cat([torch.zeros(len(rows), 1, dtype=torch.int64), rows.bag[:, : length - 1]], dim=1)
    mask = words != data.UNKNOWN
    return _samples(
        found, rows, words[:, None, :, None], torch.zeros(mask.shape)[:, None], mask[:, None], ((found.bag,),)
    )


def _samples(
    found: Data,
    rows: Rows,
    events: Tensor,
    seconds: Tensor,
    mask: Tensor,
    sources: tuple[tuple[int, ...], ...],
    hidden: tuple[float, ...] = (),
) -> Samples:
    """Every sequence's first token becomes the one that all sequences begin with."""
    events, seconds, mask = events.clone(), seconds.clone(), mask.clone()
    events[:, :, 0], seconds[:, :, 0], mask[:, :, 0] = 0, 0.0, True
    none = nothing(len(rows), 0, len(found.tasks))
    ids = torch.cat([rows.ids, rows.domain[:, None] + 1], dim=1)
    schema = Schema(
        (*found.cardinalities, len(found.domains) + 1),
        found.bag,
        rows.dense.shape[1],
        sources,
        events.shape[2],
        len(found.domains),
        len(found.tasks),
        id_dropout=(*hidden, 0.0) if hidden else (),
    )
    inputs = Inputs(ids, rows.bag, rows.dense, events, seconds, mask, rows.domain, none.embedding, none.hit)
    fields = (*found.fields, "domain")
    return Samples(found.name, inputs, rows.labels, len(found.train), schema, fields, found.domains, found.tasks)


def _chunks(count: int) -> list[Tensor]:
    return list(torch.arange(count).split(CHUNK))
