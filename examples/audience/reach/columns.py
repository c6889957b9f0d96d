"""Parquet files as codes and numbers, a row group at a time, and what a first pass sees of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from examples.audience.reach import keys
from examples.audience.reach.schema import AudienceError, Schema, Value

MAX_VALUES = 65_536
"""Of a feature. A column with more is a number, a measure or a user, not a feature."""
PILOT_ROWS = 8192
"""Rows that speak for all when dependencies are learned: those with the smallest keys."""
Map = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Iterable[Any]]
"""Calls a function with each tuple of arguments: in this process, or on Ray."""


def here(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterable[Any]:
    """The Map of one process."""
    return (function(*call) for call in calls)


@dataclass(frozen=True)
class Columns:
    """How the columns of the files are to be used; those not named are not read."""

    features: tuple[str, ...]
    numbers: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()
    user: str | None = None

    @property
    def all(self) -> list[str]:
        named = [*self.features, *self.numbers, *self.measures, *([self.user] if self.user else [])]
        return list(dict.fromkeys(named))


@dataclass(frozen=True, eq=False)
class Seen:
    """What one file holds. values: feature -> value -> rows; pilot: its rows with the smallest keys."""

    path: Path
    checksum: str
    rows: int
    values: dict[str, dict[Value, int]]
    pilot: pa.Table
    pilot_keys: keys.Keys


def seen(path: Path, columns: Columns, seed: int) -> Seen:
    """One pass over one file, a row group at a time. Raises AudienceError for a column that is not there or unfit."""
    if not path.is_file():
        raise AudienceError(f"there is no file {path}")
    name = keys.checksum(path)
    values: dict[str, dict[Value, int]] = {feature: {} for feature in columns.features}
    pilot, pilot_keys, first = None, np.empty(0, np.uint64), 0
    for batch in batches(path, columns):
        own = keys.of_rows(name, first, len(batch), seed)
        for feature, found in values.items():
            for each in pc.value_counts(batch[feature]).to_pylist():
                found[each["values"]] = found.get(each["values"], 0) + each["counts"]
            if len(found) > MAX_VALUES:
                raise AudienceError(
                    f"{path}: {feature!r} has more than {MAX_VALUES} values; name it a number or leave it out"
                )
        few = np.argsort(own)[:PILOT_ROWS]
        pilot = batch.take(few) if pilot is None else pa.concat_tables([pilot, batch.take(few)])
        pilot_keys = np.concatenate([pilot_keys, own[few]])
        best = np.argsort(pilot_keys)[:PILOT_ROWS]
        pilot, pilot_keys, first = pilot.take(best), pilot_keys[best], first + len(batch)
    if pilot is None:
        raise AudienceError(f"{path} has no rows")
    return Seen(path, name, first, values, pilot, pilot_keys)


def batches(path: Path, columns: Columns) -> Iterable[pa.Table]:
    """The rows of a file, a row group at a time, with the columns that are used."""
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise AudienceError(f"{path} is no Parquet file: {error}") from None
    there = file.schema_arrow.names
    if missing := [name for name in columns.all if name not in there]:
        raise AudienceError(f"{path} has no columns {missing}; it has {there}")
    for name in columns.features:
        kind = file.schema_arrow.field(name).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_string(kind)):
            raise AudienceError(
                f"{path}: feature {name!r} holds {kind}; expected text, whole numbers or true and false"
            )
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns.all)
        if len(table):
            yield table.unify_dictionaries()


def levels(schema: Schema, name: str) -> int:
    """How many codes a feature or a number has."""
    for feature in schema.features:
        if feature.name == name:
            return len(feature.values)
    return len(schema.number(name).edges) + 2


def encoded(table: pa.Table, schema: Schema) -> dict[str, np.ndarray]:
    """Name -> the code of its value in each row, [N] int32. A value that the schema lacks is -1."""
    found = {}
    for feature in schema.features:
        column = table[feature.name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        known = pa.array(feature.values, column.type) if feature.values else pa.nulls(0, column.type)
        codes = pc.index_in(column, value_set=known, skip_nulls=False)
        found[feature.name] = pc.fill_null(codes, -1).to_numpy().astype(np.int32)
    for number in schema.numbers:
        found[number.name] = number.codes(floats(table[number.name]))
    return found


def floats(column: pa.ChunkedArray) -> np.ndarray:
    """[N] float64; a missing number is NaN."""
    return pc.fill_null(column.cast(pa.float64()), float("nan")).to_numpy()
