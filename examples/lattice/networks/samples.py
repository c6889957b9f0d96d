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
from examples.lattice import checks, data
from examples.lattice.data import Data, DataError
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


@dataclass(frozen=True)
class Passes:
    """How a network is trained: passes over the rows, and rows of a step."""

    epochs: int = 1
    batch: int = 512


PASSES = {"clothing": Passes(2, 128)}
"""Where one pass of large steps is too little: of 1 to 8 passes and steps of 128 and 512 rows the best NE on the last
tenth of the training rows."""


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
    passes: Passes = Passes()

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

    def taught(self, knowledge: Knowledge, embedding: bool = True) -> Samples:
        """With what a teacher knew of each row: its logits, and its embedding as a feature if that is wanted. Raises
        DataError for another count of rows or tasks."""
        if knowledge.logits.shape != self.labels.shape or len(knowledge.embedding) != len(self.labels):
            raise DataError(
                f"expected what a teacher knew of {len(self.labels)} rows and {len(self.tasks)} tasks, got "
                f"{len(knowledge.embedding)} embeddings and logits of {tuple(knowledge.logits.shape)}"
            )
        if not embedding:
            return replace(self, knowledge=knowledge)
        inputs = self.inputs._replace(known=knowledge.embedding, hit=knowledge.hit)
        schema = replace(self.schema, known=knowledge.embedding.shape[1])
        return replace(self, inputs=inputs, schema=schema, knowledge=knowledge)

    def with_fields(self, names: tuple[str, ...], bag: bool = True) -> Samples:
        """With these fields alone, and with or without the bag; the domain always stays."""
        if unknown := sorted({*names} - {*self.fields, "bag"}):
            raise DataError(f"{self.name} has no field {', '.join(unknown)}; it has {', '.join(self.fields)}")
        columns = [place for place, field in enumerate(self.fields) if field in names or field == "domain"]
        inputs = self.inputs._replace(ids=self.inputs.ids[:, columns])
        if not bag:
            inputs = inputs._replace(bag=torch.zeros_like(inputs.bag[:, :1]))
        schema = replace(
            self.schema,
            bag=self.schema.bag if bag else 1,
            cardinalities=tuple(self.schema.cardinalities[i] for i in columns),
            id_dropout=tuple(self.schema.id_dropout[i] for i in columns) if self.schema.id_dropout else (),
        )
        return replace(self, inputs=inputs, schema=schema, fields=tuple(self.fields[i] for i in columns))

    def only(self, portfolios: list[tuple[int, int]]) -> Samples:
        """With the labels of these (domain, task) alone, and without tasks that none of them has. Ids of test rows that
        no row with such a label has are unknown: whoever learns from these labels does not learn them."""
        own = torch.zeros(len(self.domains), len(self.tasks), dtype=torch.bool)
        for domain, task in portfolios:
            self._has(domain, task)
            own[domain, task] = True
        labels = self.labels.masked_fill(~own[self.inputs.domain], torch.nan)
        schema = replace(self.schema, served=tuple(own.any(1).nonzero()[:, 0].tolist()))
        return replace(self, labels=labels, schema=schema).with_tasks(own.any(0).nonzero()[:, 0].tolist())._learned()

    def with_tasks(self, tasks: list[int]) -> Samples:
        """With these tasks alone."""
        knowledge = self.knowledge and replace(self.knowledge, logits=self.knowledge.logits[:, tasks])
        schema, names = replace(self.schema, tasks=len(tasks)), tuple(self.tasks[task] for task in tasks)
        return replace(self, labels=self.labels[:, tasks], schema=schema, tasks=names, knowledge=knowledge)

    def portfolio(self, domain: int, task: int) -> Samples:
        """The rows of one domain with the labels of one task. Ids of test rows that no row to learn from has are
        unknown, though other domains know them."""
        self._has(domain, task)
        found = self.rows((self.inputs.domain == domain).nonzero()[:, 0]).with_tasks([task])
        return replace(found, schema=replace(found.schema, served=(domain,)))._learned()

    def _has(self, domain: int, task: int) -> None:
        if not (0 <= domain < len(self.domains) and 0 <= task < len(self.tasks)):
            raise DataError(
                f"{self.name} has {len(self.domains)} domains and {len(self.tasks)} tasks, got domain {domain}, task "
                f"{task}"
            )

    @property
    def labelled(self) -> Tensor:
        """The rows to learn from that have a label: others teach nothing."""
        return self.train[~self.labels[: self.cut].isnan().all(dim=1)]

    def vocabulary(self) -> int:
        """How many ids a network has use for: UNKNOWN, and those that the labelled rows have, in each column."""
        rows = self.labelled
        columns = [*self.inputs.ids[rows].unbind(1), self.inputs.bag[rows]]
        for source, there in enumerate(self.inputs.mask[rows].unbind(1)):
            columns += self.inputs.events[rows, source][there].unbind(1)
        return sum(len({data.UNKNOWN, *column.unique().tolist()}) for column in columns)

    def _learned(self) -> Samples:
        """With what is new in the test rows unknown."""
        return self.unseen_hidden(self.test, self.labelled)

    def unseen_hidden(self, rows: Tensor, earlier: Tensor) -> Samples:
        """With what `rows` have and the rows `earlier` do not UNKNOWN, as it is in rows that are tested: ids of each
        field, of the bag, and of each source's events."""
        ids, bag, events = (each.clone() for each in (self.inputs.ids, self.inputs.bag, self.inputs.events))
        ids[rows] = data.by_column(ids[rows], ids[earlier])
        bag[rows] = data.known_only(bag[rows], bag[earlier])
        for source, there in enumerate(self.inputs.mask[earlier].unbind(1)):
            learned = events[earlier, source][there]  # (events, E): what fills up is not looked at
            now = events[rows, source].flatten(0, 1)
            events[rows, source] = data.by_column(now, learned).view(len(rows), *there.shape[1:], -1)
        return replace(self, inputs=self.inputs._replace(ids=ids, bag=bag, events=events))

    def few(self, every: int) -> Samples:
        """One row of so many, for a rehearsal."""
        if every < 1:
            raise DataError(f"expected one row of 1 or more, got one of {every}")
        return self.rows(torch.arange(0, len(self.labels), every))

    def last(self, count: int) -> Samples:
        """The last rows alone, four fifths of them to learn from; for a rehearsal."""
        if not 1 <= count <= len(self.labels):
            raise DataError(f"expected 1 to {len(self.labels)} rows of {self.name}, got {count}")
        found = self.rows(torch.arange(len(self.labels) - count, len(self.labels)))
        return replace(found, cut=count * 4 // 5)

    def rows(self, which: Tensor) -> Samples:
        """These rows alone, in their order: their places, or a mask (N,). Rows to learn from come first, so places that
        are in another order would make some of them test rows."""
        if which.dtype == torch.bool and which.shape == self.labels.shape[:1]:
            which = which.nonzero()[:, 0]
        if which.dtype != torch.int64 or which.dim() != 1 or bool((which.diff() < 1).any()):
            raise DataError(
                f"expected rising places of rows, each once, or a mask of {len(self.labels)}, got {which.dtype} of "
                f"{tuple(which.shape)}: sort them, .unique() does"
            )
        if len(which) and not (int(which[0]) >= 0 and int(which[-1]) < len(self.labels)):
            places = f"{int(which[0])} to {int(which[-1])}"
            raise DataError(f"expected places of rows from 0 to below {len(self.labels)}, got {places}")
        knowledge = None if self.knowledge is None else self.knowledge[which]
        inputs = Inputs(*(column[which] for column in self.inputs))
        cut = int((which < self.cut).sum())
        return replace(self, inputs=inputs, labels=self.labels[which], cut=cut, knowledge=knowledge)


def load(name: str, seed: int = 0) -> Samples:
    """MovieLens or clothing; `seed` draws clothing's split."""
    if name not in LENGTHS:
        raise DataError(f"there is no {name!r}; there are {', '.join(LENGTHS)}. Of your own data: samples.of(...)")
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
        its = [parts[source] for parts in each]
        events.append(torch.stack([torch.cat([p.items for p in its]), torch.cat([p.stars for p in its])], dim=-1))
        seconds.append(torch.cat([p.seconds for p in its]))
        masks.append(torch.cat([p.mask for p in its]))
    ids, ago, there = (torch.stack(each, 1)[:, :, 1:] for each in (events, seconds, masks))  # the first is no event
    cardinalities = (found.cardinalities[ratings.FIELDS.index("item")], histories.STARS)
    return of(found, Events(ids, ago, there, (cardinalities,) * len(sources)), hidden)


def clothing(seed: int = 0, length: int = LENGTHS["clothing"]) -> Samples:
    """Reviews; the first length - 1 different words are the sequence, all of them the bag."""
    found = data.clothing(seed)
    words = found.everything().bag[:, None, : length - 1]
    events = Events(words[..., None], torch.zeros(words.shape), words != data.UNKNOWN, ((found.bag,),))
    return replace(of(found, events), passes=PASSES["clothing"])


@dataclass(frozen=True, eq=False)
class Events:
    """What happened before each of N rows, by S sources: at most L events of E fields each.

    ids (N, S, L, E) int64; seconds (N, S, L) float32 before the row's impression, 0 where there is no event; mask
    (N, S, L) bool, which of them are there; cardinalities: for each source the ids of each of its fields.
    """

    ids: Tensor
    seconds: Tensor
    mask: Tensor
    cardinalities: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        checks.events(self.ids, self.seconds, self.mask, self.cardinalities)


def of(found: Data, events: Events | None = None, id_dropout: tuple[float, ...] = ()) -> Samples:
    """Any data set as networks read it: the rows of both parts, those to learn from first.

    events: of all rows, in that order; without them a sequence has the token alone that every sequence begins with.
    id_dropout: by field, how often training hides its id.
    """
    rows = found.everything()
    if events is None:
        none = torch.zeros(len(rows), 1, 0)
        events = Events(none[..., None].long(), none, none.bool(), ((1,),))
    if len(events.ids) != len(rows):
        raise DataError(f"expected events of all {len(rows)} rows of {found.name}, got {len(events.ids)}")
    first = torch.zeros(len(rows), len(events.cardinalities), 1)
    ids = torch.cat([first[..., None].expand(-1, -1, -1, events.ids.shape[3]).long(), events.ids], dim=2)
    seconds, mask = torch.cat([first, events.seconds], dim=2), torch.cat([first == 0, events.mask], dim=2)
    known = nothing(len(rows), 0, len(found.tasks))
    schema = Schema(
        (*found.cardinalities, len(found.domains) + 1),
        found.bag,
        rows.dense.shape[1],
        events.cardinalities,
        ids.shape[2],
        len(found.domains),
        len(found.tasks),
        id_dropout=(*id_dropout, 0.0) if id_dropout else (),
    )
    fields = torch.cat([rows.ids, rows.domain[:, None] + 1], dim=1)
    inputs = Inputs(fields, rows.bag, rows.dense, ids, seconds, mask, rows.domain, known.embedding, known.hit)
    names = (*found.fields, "domain")
    return Samples(found.name, inputs, rows.labels, len(found.train), schema, names, found.domains, found.tasks)


def _chunks(count: int) -> list[Tensor]:
    return list(torch.arange(count).split(CHUNK))
