"""Parquet files as codes and numbers, a row group at a time, and what a first pass sees of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from examples.audience.reach import keys
from examples.audience.reach.kinds import checked, coded, countable, floats, of_views, plain
from examples.audience.reach.schema import AudienceError, Schema, Value

MAX_VALUES = 65_536
"""Of a feature. A column with more is a number, a measure or a user, not a feature."""
PILOT_ROWS = 8192
"""Rows that speak for all when dependencies are learned: those with the smallest keys."""
OWN = ":"
"""Columns of a sample that are not columns of the files begin with it, and no column that is named may."""
KEY, STRATUM, WEIGHT, GROUP, GROUP_SIZE, USER, MEASURE = (
    OWN + name for name in ("key", "stratum", "weight", "group", "group size", "user", "measure ")
)
"""Of a row: its number of keys.py, its stratum, the rows that it stands for, those that were drawn alike and how many
rows these stand for, its user's number; and what precedes a measure's name, which may be a feature's, too."""
Map = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterable[Any]]
"""Calls a function with each tuple of arguments: in this process, or on Ray."""


def here(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterable[Any]:
    """The Map of one process."""
    return (function(*call) for call in calls)


@dataclass(frozen=True)
class Columns:
    """How the columns of the files are to be used; those not named are not read.

    A column can be asked for in one way, as a feature or as a number, and be a measure besides.
    """

    features: tuple[str, ...]
    numbers: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()
    user: str | None = None

    def __post_init__(self) -> None:
        if not self.all:
            raise AudienceError("no column is named; name at least one feature, number, measure or user")
        if own := [name for name in self.all if name.startswith(OWN)]:
            raise AudienceError(
                f"the column {own[0]!r} begins with {OWN!r}, as those of the sample itself do; rename it"
            )
        for what, names in (("feature or number", self.features + self.numbers), ("measure", self.measures)):
            if twice := [name for name in names if names.count(name) > 1]:
                raise AudienceError(f"{twice[0]!r} is named twice; a column is one {what}, so name it once")

    @property
    def uses(self) -> dict[str, tuple[str, ...]]:
        """Use -> names."""
        user = (self.user,) if self.user else ()
        return {"feature": self.features, "number": self.numbers, "measure": self.measures, "user": user}

    @property
    def all(self) -> list[str]:
        return list(dict.fromkeys(name for names in self.uses.values() for name in names))


@dataclass(frozen=True, eq=False)
class Seen:
    """What one file holds. kinds: see kinds.py; values: feature -> those that occur; pilot: the rows with the smallest
    keys."""

    path: Path
    checksum: str
    rows: int
    kinds: dict[str, str]
    values: dict[str, set[Value]]
    pilot: pa.Table
    pilot_keys: keys.Keys


def seen(path: Path, columns: Columns, seed: int) -> Seen:
    """One pass over one file, a row group at a time. Raises AudienceError for a column that is not there or unfit."""
    if not path.is_file():
        raise AudienceError(f"there is no file {path}")
    with _reading(path):
        name, there = keys.checksum(path), pq.read_schema(path)
    kinds = checked(path, there, columns.uses)
    values: dict[str, set[Value]] = {feature: set() for feature in columns.features}
    pilot, pilot_keys, first = None, np.empty(0, np.uint64), 0
    for batch in batches(path, columns):
        own = keys.of_rows(name, first, len(batch), seed)
        for feature, found in values.items():
            with _reading(path):
                found.update(pc.unique(plain(batch[feature])).to_pylist())
            enough(f"{path}: ", feature, found)
        for number in columns.numbers:
            countable(path, number, plain(batch[number]))
        if columns.user and (nobody := plain(batch[columns.user]).null_count):
            raise AudienceError(f"{path}: user {columns.user!r} is missing in {nobody} rows; leave these rows out")
        few = np.argsort(own)[:PILOT_ROWS]
        pilot = batch.take(few) if pilot is None else pa.concat_tables([pilot, batch.take(few)])
        pilot_keys = np.concatenate([pilot_keys, own[few]])
        best = np.argsort(pilot_keys)[:PILOT_ROWS]
        pilot, pilot_keys, first = pilot.take(best), pilot_keys[best], first + len(batch)
    if pilot is None:
        raise AudienceError(f"{path} has no rows; leave it out")
    return Seen(path, name, first, kinds, values, pilot, pilot_keys)


def enough(where: str, feature: str, values: set[Value]) -> None:
    """Raises AudienceError for a feature of more than MAX_VALUES values."""
    if len(values) > MAX_VALUES:
        raise AudienceError(
            f"{where}feature {feature!r} has more than {MAX_VALUES:,} values, the most it can have; name it a number, "
            "or leave it out"
        )


def batches(path: Path, columns: Columns) -> Iterable[pa.Table]:
    """The rows of a file, a row group at a time, with the columns that are used."""
    with _reading(path):
        file = pq.ParquetFile(path)
    for group in range(file.num_row_groups):
        with _reading(path):
            table = file.read_row_group(group, columns.all)
        for at, field in enumerate(table.schema):
            if of_views(field.type):  # Arrow takes no rows of these
                table = table.set_column(at, field.name, plain(table.column(at)))
        if len(table):
            yield table.unify_dictionaries()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise AudienceError(f"{path} is no Parquet file that can be read: {error}; write it again") from None


def levels(schema: Schema, name: str) -> int:
    """How many codes a feature or a number has."""
    for feature in schema.features:
        if feature.name == name:
            return len(feature.values)
    return len(schema.number(name).edges) + 2


def encoded(table: pa.Table, schema: Schema) -> dict[str, np.ndarray]:
    """Name -> the code of its value in each row, [N] int32. A value that the schema lacks is -1."""
    found = {feature.name: coded(table[feature.name], feature) for feature in schema.features}
    return found | {number.name: number.codes(floats(table[number.name])) for number in schema.numbers}
