"""MovieLens-100k with histories: every rating together with what the same user had rated before it.

Two event sources, ratings of four stars or more and ratings below. The history of a rating holds what its user did in
strictly earlier seconds, newest first; what happens within one second is not its own past. Split and ids are those of
examples/movielens.py: nothing is numbered that the training ratings do not contain.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from examples import movielens
from examples.movielens import FIELDS, LIKED, UNKNOWN

SOURCES = ("liked", "disliked")
MAX_LENGTH = 512  # tokens of a sequence: the request and at most 511 events before it
STARS = 6  # ids of the stars given: 0 for a request, which has none yet, and 1 to 5
CONTEXT = len(FIELDS) + 1  # tokens: one a field, one for the film's genres
EVER = 10**10  # more seconds than there are


class Events(NamedTuple):
    """One source's sequences of B requests. Token 0 is the request itself: its film, no stars, 0 seconds ago.

    items    (B, T) int64      ids of the films, newest first
    stars    (B, T) int64
    genres   (B, T, G) float32 the film's genres as shares that sum to 1
    seconds  (B, T) float32    before the request; never decreasing along the sequence
    mask     (B, T) bool       True where there is an event; the rest fills up and must not matter
    """

    items: Tensor
    stars: Tensor
    genres: Tensor
    seconds: Tensor
    mask: Tensor


class Batch(NamedTuple):
    """B requests: ids (B, len(FIELDS)) int64, genres (B, G) float32, one Events a source, labels (B,) float32."""

    ids: Tensor
    genres: Tensor
    events: tuple[Events, ...]
    labels: Tensor

    @property
    def inputs(self) -> tuple[object, ...]:
        """What the model is called with."""
        return self.ids, self.genres, self.events


@dataclass(frozen=True, eq=False)
class Source:
    """The N events of one source, each user's in the order of time, and where every rating's history lies in them."""

    rows: Tensor  # (events,) which rating each event is
    start: Tensor  # (N,) the first event of the rating's user
    end: Tensor  # (N,) one past the last event that is earlier than the rating


@dataclass(frozen=True, eq=False)
class Histories:
    """All ratings in the order of time; the first `cut` of them are for training."""

    ids: Tensor
    genres: Tensor
    stars: Tensor
    times: Tensor
    labels: Tensor
    sources: tuple[Source, ...]
    cut: int
    cardinalities: tuple[int, ...]

    @property
    def train(self) -> Tensor:
        """The rows to learn from."""
        return torch.arange(self.cut)

    @property
    def test(self) -> Tensor:
        """The rows to be judged on."""
        return torch.arange(self.cut, len(self.labels))

    def lengths(self, rows: Tensor, max_length: int = MAX_LENGTH) -> Tensor:
        """(len(rows), sources): tokens of each sequence, the request included."""
        counts = torch.stack([(source.end - source.start)[rows] for source in self.sources], dim=1)
        return 1 + counts.clamp(max=max_length - 1)

    def batch(self, rows: Tensor, max_length: int = MAX_LENGTH, pad_to: int | None = None) -> Batch:
        """These ratings as the model's input. Sequences are filled up to the longest's next multiple of 8, or `pad_to`.

        The history keeps its max_length - 1 newest events.
        """
        longest = self.lengths(rows, max_length).amax(dim=0).tolist()
        events = tuple(
            self.events(source, rows, pad_to or -(-length // 8) * 8, max_length)
            for source, length in zip(self.sources, longest, strict=True)
        )
        return Batch(self.ids[rows], self.genres[rows], events, self.labels[rows])

    def events(self, source: Source, rows: Tensor, length: int, max_length: int) -> Events:
        """One source's sequences, `length` tokens long."""
        ago = torch.arange(length - 1)
        place = source.end[rows, None] - 1 - ago
        known = (place >= source.start[rows, None]) & (ago < max_length - 1)
        past = source.rows[place.clamp(min=0)]
        past = torch.cat([rows[:, None], past.where(known, rows[:, None])], dim=1)  # what fills up repeats the request
        mask = torch.cat([torch.ones(len(rows), 1, dtype=torch.bool), known], dim=1)
        stars = self.stars[past].where(past != rows[:, None], 0)
        seconds = (self.times[rows, None] - self.times[past]).float()
        return Events(self.ids[past, FIELDS.index("item")], stars, self.genres[past], seconds, mask)

    def batches(self, rows: Tensor, size: int, max_length: int = MAX_LENGTH, shuffle: bool = False) -> Iterator[Batch]:
        """All of `rows`, `size` at a time, neighbours of like length, so that little is filled up.

        In order of length; shuffled, that order holds within 16 batches only, and these come in any order.
        """
        if shuffle:
            rows = rows[torch.randperm(len(rows))]
            groups = rows.split(16 * size)
        else:
            groups = (rows,)
        for group in groups:
            lengths = self.lengths(group, max_length).sum(dim=1)
            parts = group[lengths.argsort(stable=True)].split(size)
            for index in torch.randperm(len(parts)).tolist() if shuffle else range(len(parts)):
                yield self.batch(parts[index], max_length)


def load() -> Histories:
    """Reads MovieLens and finds every rating's history."""
    data, ratings = movielens.load(), movielens.ratings_by_time()
    users = torch.tensor([int(row["user_id"]) for row in ratings])
    stars = torch.tensor([int(float(row["rating"])) for row in ratings])
    ids, genres, times = (
        torch.cat([getattr(data.train, name), getattr(data.test, name)]) for name in ("ids", "genres", "times")
    )
    liked = stars >= LIKED
    sources = tuple(find(users, times, chosen) for chosen in (liked, ~liked))
    shares = genre_shares(genres, data.genres)
    return Histories(ids, shares, stars, times, liked.float(), sources, len(data.train), data.cardinalities)


def find(users: Tensor, times: Tensor, chosen: Tensor) -> Source:
    """The events `chosen`, by user and time, and each rating's part of them."""
    rows = chosen.nonzero().squeeze(1)
    when = users * EVER + times
    keys, order = when[rows].sort(stable=True)
    return Source(rows[order], torch.searchsorted(keys, users * EVER), torch.searchsorted(keys, when))


def genre_shares(genres: Tensor, count: int) -> Tensor:
    """(N, most) ids filled up with UNKNOWN to (N, count) float32: an equal share for each genre, 0 for UNKNOWN."""
    shares = torch.zeros(len(genres), count).scatter_(1, genres, 1.0)
    shares[:, UNKNOWN] = 0
    return shares / shares.sum(dim=1, keepdim=True).clamp(min=1)
