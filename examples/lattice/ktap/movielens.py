"""A stream to measure KTAP on: MovieLens, a teacher that knows what people and films did before, a student that does
not.

A pair is scored some time before its impression, as a candidate is when it is retrieved; how long before is drawn
between a minute and a day, evenly in the logarithm [I]. The teacher sees the counters of that moment: how much this
user and this film had been rated, and how well. It is trained on the first half of the ratings; the student on the
next 30 %, and both are judged on the last 20 %: the teacher has learned from nothing that the student is trained or
judged on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from examples import movielens
from examples.lattice import data
from examples.lattice.data import Rows
from examples.lattice.ktap.record import Knowledge, TeacherId, decode, encode, key
from examples.lattice.ktap.store import InProcess
from examples.lattice.ktap.student import Student, Use, loss
from examples.lattice.ktap.teacher import HOUR
from examples.models.dlrm import Tokens
from examples.models.wukong import mlp
from examples.movielens import UNKNOWN
from examples.training import ID_DROPOUT

WIDTH, TASKS = 16, 2  # of the teacher's embedding; liked, loved
FIELDS = ("age", "gender", "occupation", "year")
SOONEST, LATEST = 60.0, 24 * HOUR  # how long before the impression a pair is scored
RATE, BATCH = 2e-3, 128


@dataclass(frozen=True, eq=False)
class Stream:
    """All ratings with ids (N, F); counters (N, 4) as of `scored` (N,) seconds; `first` and `second` end the parts.
    id_dropout: by field, how often training hides an id, so that UNKNOWN learns its vector."""

    rows: Rows
    ids: Tensor
    counters: Tensor
    scored: Tensor
    cardinalities: tuple[int, ...]
    bag: int
    first: int
    second: int
    id_dropout: tuple[float, ...]

    def asked(self, rows: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Ids and bags of these rows for a model that has learned from the rows from `start` to `stop`, which has no
        weights for what those do not contain: that is UNKNOWN."""
        ids, bag = self.ids[start:stop], self.rows.bag[start:stop]
        return data.by_column(self.ids[rows], ids), data.known_only(self.rows.bag[rows], bag)

    def some_hidden(self, rows: Tensor) -> Tensor:
        """Ids of these rows to learn from, some of them UNKNOWN."""
        ids = self.ids[rows]
        return ids.masked_fill(torch.rand(ids.shape) < torch.tensor(self.id_dropout), UNKNOWN)


class Teacher(nn.Module):
    """ids, bag and counters (B, 4) to its backbone's embedding (B, WIDTH) and logits (B, TASKS)."""

    def __init__(self, cardinalities: tuple[int, ...], bag: int, hidden: int = 128) -> None:
        super().__init__()
        self.tokens = Tokens(cardinalities, bag, 16)
        self.backbone = mlp((len(cardinalities) + 1) * 16 + 4, hidden, hidden, WIDTH, dropout=0.0)
        self.head = nn.Linear(WIDTH, TASKS)

    def forward(self, ids: Tensor, bag: Tensor, counters: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.backbone(torch.cat([self.tokens(ids, bag).flatten(1), counters], dim=1)).relu()
        return embedding, self.head(embedding)


def stream(seed: int, count: int | None = None) -> Stream:
    """The last `count` ratings, all by default."""
    rows = data.movielens().everything()[slice(-count if count else None, None)]
    columns = [movielens.FIELDS.index(field) for field in FIELDS]
    ids = torch.cat([rows.users[:, None], rows.items[:, None], rows.ids[:, columns]], dim=1)
    generator = torch.Generator().manual_seed(seed)
    before = SOONEST * (LATEST / SOONEST) ** torch.rand(len(rows), dtype=torch.float64, generator=generator)
    scored = rows.times - before
    each = [counters(keys, rows.times, rows.labels[:, 0], scored) for keys in (rows.users, rows.items)]
    cardinalities = tuple((ids.amax(0) + 1).tolist())
    first, second = len(rows) // 2, len(rows) * 4 // 5
    hidden = tuple(ID_DROPOUT.get(name, 0.0) for name in ("user", "item", *FIELDS))
    bags = int(rows.bag.max()) + 1
    return Stream(rows, ids, torch.cat(each, 1), scored, cardinalities, bags, first, second, hidden)


def counters(keys: Tensor, times: Tensor, labels: Tensor, at: Tensor) -> Tensor:
    """(N, 2) of each row's key at second `at`: log of 1 + ratings strictly before, and their share of likes, drawn to
    one half while they are few."""
    order = torch.argsort(times + keys.double() * 2.0**34)  # by key, then time: seconds since 1970 stay below 2^34
    place = times[order] + keys[order].double() * 2.0**34
    end = torch.searchsorted(place, at + keys.double() * 2.0**34)
    start = torch.searchsorted(keys[order].contiguous(), keys)
    total = torch.cat([torch.zeros(1), labels[order].cumsum(0)])
    seen = (end - start).clamp(min=0)
    liked = total[start + seen] - total[start]
    return torch.stack([seen.float().log1p(), (liked + 1) / (seen + 2) - 0.5], dim=1)


def teach(found: Stream, seed: int, epochs: int = 2) -> Teacher:
    """A teacher trained on the first part."""
    torch.manual_seed(seed)
    teacher = Teacher(found.cardinalities, found.bag)
    optimizer = torch.optim.Adam(teacher.parameters(), RATE, fused=True)
    for part in batches(torch.arange(found.first), epochs):
        _, logits = teacher(found.some_hidden(part), found.rows.bag[part], found.counters[part])
        step(optimizer, binary_cross_entropy_with_logits(logits, found.rows.labels[part]))
    return teacher


@torch.no_grad()
def ask(found: Stream, teacher: Teacher, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The teacher's embedding (n, WIDTH) and logits (n, TASKS) of these rows."""
    return teacher(*found.asked(rows, 0, found.first), found.counters[rows])


@torch.no_grad()
def through_the_store(found: Stream, teacher: Teacher, ttl: float, covered: float, seed: int) -> Knowledge:
    """What a store gives for each impression after the first part, events in the order of time: the teacher writes a
    pair's record when it scores it, for `ttl` seconds; the student asks for it at the impression. covered: the share of
    pairs that the teacher gets to."""
    rows = torch.arange(found.first, len(found.ids))
    embedding, logits = ask(found, teacher, rows)
    who = TeacherId("movielens", seed)
    keys = [
        key(user, item, who)
        for user, item in zip(found.rows.users[rows].tolist(), found.rows.items[rows].tolist(), strict=True)
    ]
    values = encode(keys, embedding, logits, found.scored[rows].tolist(), who)
    written = torch.rand(len(rows), generator=torch.Generator().manual_seed(seed)) < covered
    now = [0.0]
    store = InProcess(clock=lambda: now[0])
    events = torch.cat([found.scored[rows].where(written, torch.inf), found.rows.times[rows].double()])
    read: list[bytes | None] = [None] * len(rows)
    for event in torch.argsort(events, stable=True).tolist():
        now[0] = float(events[event])
        if event < len(rows) and now[0] < torch.inf:
            store.put([keys[event]], [values[event]], ttl)
        elif event >= len(rows):
            [read[event - len(rows)]] = store.get([keys[event - len(rows)]])
    knowledge, _ = decode(keys, read, WIDTH, TASKS, found.rows.times[rows].tolist(), who)
    return knowledge


def study(found: Stream, knowledge: Knowledge, use: Use, seed: int, epochs: int = 2) -> Tensor:
    """Logits (n, TASKS) of the last part, of a student that has learned from the second with what it was given."""
    torch.manual_seed(seed)
    student = Student(found.cardinalities, found.bag, TASKS, WIDTH, use)
    optimizer = torch.optim.Adam(student.parameters(), RATE, fused=True)
    for part in batches(torch.arange(found.first, found.second), epochs):
        given = knowledge[part - found.first]
        logits = student(found.some_hidden(part), found.rows.bag[part], given.embedding, given.hit)
        step(optimizer, loss(logits, found.rows.labels[part], given, use))
    student.eval()
    last = torch.arange(found.second, len(found.ids))
    given = knowledge[last - found.first]
    with torch.no_grad():
        return student(*found.asked(last, found.first, found.second), given.embedding, given.hit)


def batches(rows: Tensor, epochs: int) -> Iterator[Tensor]:
    for _ in range(epochs):
        yield from rows[torch.randperm(len(rows))].split(BATCH)


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
