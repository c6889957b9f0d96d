"""A shard in memory: packed bitmaps by feature value, and sums over the rows that match."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from examples.audience.reach.answer import Answer, Groups
from examples.audience.reach.calibrate import ROWS_TRIED, Cells
from examples.audience.reach.columns import GROUP, GROUP_SIZE, MEASURE, WEIGHT, levels
from examples.audience.reach.design import Design
from examples.audience.reach.formula import Atom
from examples.audience.reach.query import And, Everybody, In, Not, Or, Query, Range
from examples.audience.reach.schema import Schema
from examples.audience.reach.store import Manifest, read_shard

CACHED = 512
"""Bitmaps of values and ranges that are kept, the most recently used."""
FEW = 64
"""Values of one feature whose bitmaps are joined."""
Bits = np.ndarray
"""[rows / 8] uint8, a bit a row."""


@dataclass(frozen=True)
class Chance:
    """A measure made of features: a row's value is that of its combination of their values.

    table: in the order of the features' codes, the last feature's running fastest.
    """

    features: tuple[str, ...]
    table: tuple[float, ...]


@dataclass(frozen=True)
class Ask:
    """query: whom. measure: whose values are summed, or None. users: count users instead of rows, who also have a row
    that matches each of `also`, and none that matches any of `never`. atoms: criteria by whose cells all rows are
    counted, instead of those of `query`. among: all its rows are summed, and the value is 1 where `query` matches."""

    query: Query
    measure: str | Chance | None = None
    users: bool = False
    atoms: tuple[Atom, ...] = ()
    among: Query | None = None
    also: tuple[Query, ...] = ()
    never: tuple[Query, ...] = ()


class Shard:
    """Rows of a sample, in the order of their groups."""

    def __init__(self, table: pa.Table, manifest: Manifest) -> None:
        self.schema: Schema = manifest.schema
        self.rows = len(table)
        self.users = manifest.users
        self.columns = {name: table[name].to_numpy() for name in table.column_names}
        self.group = self.columns.pop(GROUP)
        self.weight = self.columns.pop(WEIGHT)
        self.bitmap = lru_cache(CACHED)(self._bitmap)
        self._everybody = np.packbits(np.ones(self.rows, bool))

    @classmethod
    def read(cls, folder: Path, manifest: Manifest, name: str) -> Shard:
        """A shard of that manifest, and of no other: two samples that are mixed are none."""
        return cls(read_shard(folder, manifest, name), manifest)

    def answer(self, ask: Ask) -> Answer | Cells:
        """The sums over the rows that match; with atoms, by cell."""
        if ask.atoms:
            return by_cell(ask.atoms, self._atom, self.weight)
        there = self.match(ask.query)
        matching = self._places(there if ask.among is None else self.match(ask.among))
        group, weight = self.group[matching], self.weight[matching]
        if ask.among is None:
            value = self._values(ask.measure, matching)
        else:
            value = np.unpackbits(there, count=self.rows)[matching].astype(float)
        if not (known := ~np.isnan(value)).all():
            group, weight, value = group[known], weight[known], value[known]
        starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]]) if len(group) else np.empty(0, np.int64)
        if len(group) == 0:
            return Answer(group, np.empty((0, 5)), 0)
        if ask.users:  # one of each, whatever number of rows
            starts = starts[self._kept(group[starts], ask)]
            weight, value, group, starts = weight[starts], value[starts], group[starts], np.arange(len(starts))
            if len(group) == 0:
                return Answer(group, np.empty((0, 5)), 0)
        columns = (weight, weight * value, weight**2, weight**2 * value, (weight * value) ** 2)
        sums = np.stack([np.add.reduceat(column, starts) for column in columns], axis=1)
        return Answer(group[starts], sums, len(group))

    def _places(self, bits: Bits) -> np.ndarray:
        return np.flatnonzero(np.unpackbits(bits, count=self.rows))

    def _kept(self, users: np.ndarray, ask: Ask) -> np.ndarray:
        """Whether each user has what the question asks of its other rows; all rows of a user lie in one shard."""
        kept = np.ones(len(users), bool)
        for others, wanted in ((ask.also, True), (ask.never, False)):
            for other in others:
                kept &= np.isin(users, self.group[self._places(self.match(other))]) == wanted
        return kept

    def _values(self, measure: str | Chance | None, rows: np.ndarray) -> np.ndarray:
        """The measure's value in each of the rows; NaN where it is not known."""
        if measure is None:
            return np.ones(len(rows))
        if isinstance(measure, str):
            return self.columns[MEASURE + measure][rows]
        at = np.zeros(len(rows), np.int64)
        known = np.ones(len(rows), bool)
        for name in measure.features:
            codes = self.columns[name][rows]
            at = at * len(self.schema.feature(name).values) + codes
            known &= codes >= 0
        return np.where(known, np.array([*measure.table, 0.0])[np.where(known, at, -1)], np.nan)

    def match(self, query: Query) -> Bits:
        """A bit a row."""
        match query:
            case Everybody():
                return self._everybody
            case In(name, values):
                feature = self.schema.feature(name)
                return self._any(name, [feature.code(value) for value in values])
            case Range(name, low, high):
                return self.bitmap(name, (low, high))
            case Not(of):
                return ~self.match(of)
            case And(parts):
                return np.bitwise_and.reduce([self.match(each) for each in parts])
            case Or(parts):
                return np.bitwise_or.reduce([self.match(each) for each in parts])

    def _atom(self, atom: Atom) -> np.ndarray:
        """0 or 1 a row."""
        name, codes = atom
        unlisted = len(self.schema.feature(name).values)
        return np.unpackbits(self._any(name, [-1 if code == unlisted else code for code in codes]), count=self.rows)

    def _any(self, name: str, codes: Sequence[int]) -> Bits:
        """A bit a row: whether it has one of the codes. Of many at once no bitmaps are made, they would not be kept."""
        if len(codes) > FEW:
            return np.packbits(np.isin(self.columns[name], codes))
        return np.bitwise_or.reduce([self.bitmap(name, code) for code in codes]) if codes else self._everybody & 0

    def _bitmap(self, name: str, what: int | tuple[float | None, float | None]) -> Bits:
        column = self.columns[name]
        if isinstance(what, int):
            return np.packbits(column == what)
        low, high = what
        inside = ~np.isnan(column)
        if low is not None:
            inside &= column >= low
        if high is not None:
            inside &= column < high
        return np.packbits(inside)

    def groups(self, count: int) -> Groups:
        """What the shard holds of `count` groups."""
        rows = np.bincount(self.group, minlength=count)
        sizes = np.zeros(count)
        sizes[self.group] = self.columns[GROUP_SIZE]
        squares = np.bincount(self.group, self.weight**2, count)
        return Groups(rows, sizes, squares, float(self.weight.max(initial=1.0)), float(sizes.sum()), self.users)


def by_cell(atoms: Sequence[Atom], matches: Callable[[Atom], np.ndarray], weight: np.ndarray) -> Cells:
    """Rows of the sample by which criteria hold. matches: a criterion -> 0 or 1 a row."""
    cell = np.zeros(len(weight), np.uint8)
    for j, atom in enumerate(atoms):
        cell |= matches(atom) << np.uint8(j)
    size = 2 ** len(atoms)
    return Cells(np.bincount(cell, weight, size), np.bincount(cell, minlength=size), float(weight @ weight))


def tried(rows: pa.Table, design: Design) -> list[Cells]:
    """What the sample says of the first trials, as many as are quickly done."""
    codes = {name: rows[name].to_numpy() for trial in design.trials for name, _ in trial}
    weight = rows[WEIGHT].to_numpy()

    def matches(atom: Atom) -> np.ndarray:
        name, own = atom
        asked = np.zeros(levels(design.schema, name) + 1, np.uint8)  # the last is for values that are not listed, -1
        asked[list(own)] = 1
        return asked[codes[name]]

    most = max(200, int(ROWS_TRIED / max(1, len(weight))))
    return [by_cell(trial, matches, weight) for trial in design.trials[:most]]
