"""MovieLens-100k as a stream: 100,000 ratings by their time, September 1997 to April 1998.

The drift is real: most users come once and never again, and films are shown to other people every month. The delays of
the labels are drawn (delays.py), so the stream is semi-synthetic. What a rating's features say of the past (activity,
taste, acclaim) is what a serving system could have known: ratings begun before, and labels that had arrived before.

A vertical is a set of genres. Films have several, so verticals share examples. Ids are numbered in the order in which
they appear; a model meets a new one with the row that it was given at the start.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from examples import movielens
from examples.exfm.stream.delays import Delays
from examples.exfm.stream.events import Events, Schema, event, impressions, in_order, labels
from examples.exfm.stream.log import HOUR, write
from examples.movielens import FIELDS, LIKED

VERTICALS = {
    "all": frozenset[str](),
    "drama": frozenset({"Drama", "War"}),
    "action": frozenset({"Action", "Adventure", "Thriller"}),
    "comedy": frozenset({"Comedy", "Romance"}),
}
"""Genres of each vertical's films; none stands for all films."""
USER_FIELDS = tuple(FIELDS.index(name) for name in ("user", "age", "gender", "occupation", "activity", "taste"))
ITEM_FIELDS = tuple(FIELDS.index(name) for name in ("item", "year", "acclaim"))


def record(folder: Path, delays: Delays | None = None, seed: int = 0, days: int | None = None, history: int = 0) -> int:
    """Write the log; how many events. days: only the first so many. history: events of each user's past to log."""
    schema, events = read(delays or Delays(), seed, days, history)
    return write(folder, schema, _hours(events))


def read(delays: Delays, seed: int = 0, days: int | None = None, history: int = 0) -> tuple[Schema, Events]:
    """All events in the order of the log."""
    root = movielens.folder()
    users = {row["user_id"]: row for row in movielens.read_table(root / "ml-100k.user")}
    items = {row["item_id"]: row for row in movielens.read_table(root / "ml-100k.item")}
    ratings = movielens.ratings_by_time()
    time = np.array([int(float(row["timestamp"])) for row in ratings])
    if days is not None:
        kept = int(np.searchsorted(time, time[0] + days * 24 * HOUR))
        ratings, time = ratings[:kept], time[:kept]
    label = np.array([float(row["rating"]) >= LIKED for row in ratings], np.float32)
    delay = delays.draw(np.random.default_rng([seed, 97]), len(ratings))

    told = np.where(delay < 0, -1, time + delay)
    past = known(ratings, time, label, told)
    values = [
        movielens.describe(users[row["user_id"]], items[row["item_id"]], *before)
        for row, before in zip(ratings, past, strict=True)
    ]
    vocabularies = [movielens.number(column) for column in zip(*values, strict=True)]
    ids = np.array([[known[value] for known, value in zip(vocabularies, row, strict=True)] for row in values])
    bags = [items[row["item_id"]]["class"].split() for row in ratings]
    genres = movielens.number(genre for bag in bags for genre in bag)
    bag = movielens.pad([[genres[genre] for genre in bag] for bag in bags]).numpy()
    sizes = tuple(len(vocabulary) + 1 for vocabulary in vocabularies)
    schema = Schema(FIELDS, sizes, len(genres) + 1, bag.shape[1], tuple(VERTICALS), history)
    before = histories([row["user_id"] for row in ratings], ids[:, FIELDS.index("item")], time, label, told, history)
    bag = np.concatenate([bag, before], axis=1)

    number = np.arange(len(ratings))
    whole = impressions(ids, bag, id=number, time=time, vertical=np.zeros(len(ratings)))
    parts = []
    for vertical, wanted in enumerate(VERTICALS.values()):
        rows = np.array([not wanted or not wanted.isdisjoint(bag) for bag in bags])
        part = whole.take(rows)
        parts.append(Events(**{**vars(part), "vertical": np.full(int(rows.sum()), vertical, np.int8)}))
    ends = labels(schema, id=number, time=time + delay, label=label).take(delay >= 0)
    return schema, in_order([*parts, ends])


def known(
    ratings: list[dict[str, str]], time: np.ndarray, label: np.ndarray, told: np.ndarray
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """For each rating, of its user and of its film: how many labels had arrived in earlier seconds, and how many of
    them were likes. told: when each label arrives, -1 for never."""
    seen: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    liked: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    due: list[tuple[int, int]] = []
    past = []
    for row, rating in enumerate(ratings):
        keys = (rating["user_id"], rating["item_id"])
        while due and due[0][0] < time[row]:
            _, earlier = heapq.heappop(due)
            for side, name in enumerate(("user_id", "item_id")):
                key = ratings[earlier][name]
                seen[side][key] += 1
                liked[side][key] += int(label[earlier])
        past.append(tuple((seen[side][key], liked[side][key]) for side, key in enumerate(keys)))
        if told[row] >= 0:
            heapq.heappush(due, (int(told[row]), row))
    return past


def histories(
    users: list[str], items: np.ndarray, time: np.ndarray, label: np.ndarray, told: np.ndarray, history: int
) -> np.ndarray:
    """For each rating the last `history` that its user had begun in earlier seconds, newest first, and of those whose
    label had arrived in earlier seconds the label. told: when each label arrives, -1 for never."""
    found = np.zeros((len(users), history), np.int32)
    begun: dict[str, list[int]] = {}
    for row, user in enumerate(users if history else []):
        own = begun.setdefault(user, [])
        earlier = bisect_left(own, time[row], key=time.__getitem__)
        last = np.array(own[max(earlier - history, 0) : earlier][::-1], np.int64)
        arrived = (told[last] >= 0) & (told[last] < time[row])
        found[row, : len(last)] = event(items[last], np.where(arrived, 1 + label[last], 0))
        own.append(row)
    return found


def _hours(events: Events) -> Iterator[Events]:
    """In pieces of an hour each, as `write` takes them."""
    ends = np.flatnonzero(np.diff(events.logged // HOUR)) + 1
    for start, end in zip([0, *ends.tolist()], [*ends.tolist(), len(events)], strict=True):
        yield events.take(slice(start, end))
