"""The second pass: what one file gives to any draw. Counts of its strata, and its rows with small keys.

A part depends on its file, the schema and the seed alone, so it is made once: a day's file that stays is not read
again when another day comes or goes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from examples.audience.reach import keys
from examples.audience.reach.columns import (
    KEY,
    MEASURE,
    STRATUM,
    USER,
    Columns,
    batches,
    encoded,
    levels,
)
from examples.audience.reach.design import Design, counted
from examples.audience.reach.kinds import floats, plain
from examples.audience.reach.margins import Names, count
from examples.audience.reach.measures import Spread, joined, spreads
from examples.audience.reach.schema import AudienceError, Schema

SPARE = 4.0
"""A row whose key is below SPARE n / N may be drawn, so a draw of up to about twice n finds enough in every stratum."""
LEAST = 12
"""Rows of each stratum that may be drawn whatever their keys."""


@dataclass(frozen=True, eq=False)
class Part:
    """strata [S, C]: combinations of the cover's codes, in lexicographic order; counts [S]: rows of each.

    rows: candidates, a table of KEY, STRATUM (a row of `strata`), codes, numbers, measures and USER, in the order of
    stratum and key. Of a stratum all rows with a key up to complete[s] are there. tables, trials: counts for
    the model, see design.py. measures: what all rows of the file say of each.
    """

    file: str
    strata: np.ndarray
    counts: np.ndarray
    complete: np.ndarray
    rows: pa.Table
    tables: dict[Names, np.ndarray]
    trials: np.ndarray
    measures: dict[str, Spread]


def part(path: Path, file: str, columns: Columns, design: Design, rate: float, seed: int) -> Part:
    """The part of one file. rate: n / N of the draw that is coming. file: its checksum, by which its keys are drawn."""
    schema, cover = design.schema, design.cover
    shape = [levels(schema, name) + 1 for name in cover]  # and one for values the schema lacks
    if math.prod(shape) >= 2**62:
        raise AudienceError(f"the cover {list(cover)} has {math.prod(shape):.1e} combinations; leave a feature out")
    limit = np.uint64(min(1.0, rate * SPARE) * (2**64 - 2**12))
    rows: pa.Table | None = None
    sizes: dict[int, int] = {}
    first, measures = 0, dict[str, Spread]()
    tables = {names: np.zeros(places, np.int64) for names, places in design.tables().items()}
    trials = np.zeros(len(design.trials), np.int64)
    for batch in batches(path, columns):
        codes = encoded(batch, schema)
        table, own = _rows(batch, codes, file, first, columns, schema, seed)
        measures = joined((measures, spreads(table, schema.measures, path)))
        count(codes, tables)
        trials += counted(design.trials, codes)
        first += len(batch)
        strata = _combined(codes, cover, shape, len(batch))
        for number, rows_of_it in zip(*(each.tolist() for each in np.unique(strata, return_counts=True)), strict=True):
            sizes[number] = sizes.get(number, 0) + rows_of_it
        table = table.append_column(STRATUM, pa.array(strata))
        table = table.filter(pa.array(_small(strata, own, limit, columns)))
        rows = table if rows is None else pa.concat_tables([rows, table])
        rows = rows.filter(pa.array(_small(*_keyed(rows), limit, columns)))
    if rows is None:  # an error in the first pass, so the file is another one now
        raise AudienceError(f"{path} has no rows; it changed while it was read, begin again")
    rows = rows.take(np.lexsort(_keyed(rows)[::-1]))
    numbers = np.array(sorted(sizes), np.int64)
    counts = np.array([sizes[number] for number in numbers.tolist()])
    stratum, key = _keyed(rows)
    position = np.searchsorted(numbers, stratum)
    held = np.bincount(position, minlength=len(numbers))
    last = key[np.maximum(np.cumsum(held) - 1, 0)] if len(key) else np.zeros(len(numbers), np.uint64)
    complete = np.where(held > 0, np.maximum(last, limit - np.uint64(1)), limit - np.uint64(1))
    complete[held == counts] = np.uint64(2**64 - 1)
    rows = rows.set_column(rows.column_names.index(STRATUM), STRATUM, pa.array(position))
    strata = np.stack(np.unravel_index(numbers, shape), 1) if shape else np.zeros((1, 0), np.int64)
    return Part(file, strata.astype(np.int32), counts, complete, rows, tables, trials, measures)


def _rows(
    batch: pa.Table,
    codes: Mapping[str, np.ndarray],
    file: str,
    first: int,
    columns: Columns,
    schema: Schema,
    seed: int,
) -> tuple[pa.Table, keys.Keys]:
    """Codes, numbers, measures and user of the rows, and their keys."""
    found = {feature.name: codes[feature.name] for feature in schema.features}
    for number in schema.numbers:
        found[number.name] = floats(batch[number.name])
    for measure in schema.measures:
        found[MEASURE + measure] = floats(batch[measure])
    if columns.user is None:
        found[KEY] = keys.of_rows(file, first, len(batch), seed)
    else:
        found[KEY], found[USER] = keys.of_users(plain(batch[columns.user]), seed)
    return pa.table(found), found[KEY]


def _combined(codes: Mapping[str, np.ndarray], cover: Sequence[str], shape: Sequence[int], rows: int) -> np.ndarray:
    """The number of each row's stratum, [N] int64, lexicographic in the cover's order."""
    found = np.zeros(rows, np.int64)
    for name, size in zip(cover, shape, strict=True):
        found = found * size + np.where(codes[name] < 0, size - 1, codes[name])
    return found


def _small(strata: np.ndarray, own: keys.Keys, limit: np.uint64, columns: Columns) -> np.ndarray:
    """Whether a row may be drawn, [N] bool: its key is below the limit, or among the LEAST smallest of its stratum.

    Users are drawn by their keys alone, as a user's other rows may lie in other files.
    """
    below = own < limit
    if columns.user is not None:
        return below
    order = np.lexsort((own, strata))
    starts = np.flatnonzero(np.r_[True, strata[order][1:] != strata[order][:-1]])
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    found = np.empty(len(order), bool)
    found[order] = rank < LEAST
    return below | found


def _keyed(table: pa.Table) -> tuple[np.ndarray, keys.Keys]:
    """The stratum and the key of each row, [N] each."""
    return table[STRATUM].to_numpy(), table[KEY].to_numpy()
