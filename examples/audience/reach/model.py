"""What the whole population says of a question, and how wrong that is.

Outside a vertex cover no edge of the dependency graph remains, so within a stratum the joint is a product of marginals
(Markov property). The sizes of all strata are known exactly, and so is how a feature is spread given those that it
depends on:
    N(q) = sum over strata s that q allows, N_s prod over other criteria f, P(f | s).
The graph may lack edges. Pairs and triples of features, and the cover, are counted in full, so the model's cells are
raked to all of them (iterative proportional fitting, Deming and Stephan 1940). A question about features that were
counted together is answered exactly. How wrong the model is about others, is measured on trials that were counted in
full, by how many rows they match; calibrate.py weighs it accordingly against the sample.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np

from examples.audience.reach.columns import levels
from examples.audience.reach.design import Design
from examples.audience.reach.formula import Atom, Formula, signatures, sums
from examples.audience.reach.margins import Names
from examples.audience.reach.schema import AudienceError
from examples.audience.reach.strata import Share, Strata, compact, joined, summed_out

DECADES = 6
"""Errors are told apart by the share that the model predicts, in powers of ten: 1 to 0.1, 0.1 to 0.01, …"""
ENOUGH = 40
"""Trials for a decade to speak for itself; with fewer it takes its neighbour's, too."""
REMEMBERED = 4096
"""Questions whose cells are not computed again."""
_LOCK = threading.Lock()
FLOOR = 0.01
"""Rows that a cell has at least before it is raked: the graph may rule out what there is."""
ROUNDS = 40
Figure = Callable[[np.ndarray], float]
TOLERANCE = 1e-3
"""Of a count, and TOLERANCE * 50 rows, by which raked cells may miss it."""


@dataclass(frozen=True, eq=False)
class Face:
    """Some criteria of a question that were counted together. mask: which; cells [2^m]: rows in each combination."""

    mask: int
    cells: np.ndarray


@dataclass(frozen=True, eq=False)
class Expected:
    """cells [2^k]: rows that the model expects in each; known [2^k]: rows for which all criteria of a set hold, NaN
    where that was not counted."""

    cells: np.ndarray
    known: np.ndarray


@dataclass(frozen=True, eq=False)
class Model:
    """strata [S, C]: codes of the cover; counts [S]: rows of each. tables: see Design.tables. errors [DECADES]:
    relative, root mean square, by what is predicted; stretch [DECADES]: by how much intervals have to be wider to hold
    95 % of what is that large."""

    design: Design
    strata: np.ndarray
    counts: np.ndarray
    tables: Mapping[Names, np.ndarray]
    errors: np.ndarray = field(default_factory=lambda: np.ones(DECADES))
    stretch: np.ndarray = field(default_factory=lambda: np.ones(DECADES))

    @cached_property
    def population(self) -> float:
        return float(self.counts.sum())

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        """Of each feature of the cover, the code of every stratum."""
        return {name: self.strata[:, i] for i, name in enumerate(self.design.cover)}

    @cached_property
    def _asked(self) -> dict[tuple[Atom, ...], Expected]:
        """Of the last questions."""
        return {}

    @cached_property
    def _named(self) -> dict[frozenset[str], Names]:
        return {frozenset(names): names for names in self.design.margins}

    def expected(self, asked: Formula) -> Expected:
        """What is known of the question's cells, and what the model says of the rest."""
        with _LOCK:
            found = self._asked.get(asked.atoms)
        if found is None:
            found = self._expected(asked)
            with _LOCK:
                if len(self._asked) >= REMEMBERED:
                    del self._asked[next(iter(self._asked))]
                self._asked[asked.atoms] = found
        return found

    def _expected(self, asked: Formula) -> Expected:
        strata = self._joined(asked)
        k, faces = len(asked.atoms), self._faces(asked, strata)
        known = np.full(2**k, np.nan)
        for face in faces:
            inside = [i for i in range(2**k) if i & face.mask == i]
            known[inside] = sums(len(inside).bit_length() - 1) @ face.cells
        if not np.isnan(known).any():  # one face has all
            return Expected(next(face.cells for face in faces if face.mask == 2**k - 1), known)
        return Expected(raked(self._prior(asked, strata) + FLOOR, faces, k), known)

    def _joined(self, asked: Formula) -> Strata:
        """The strata, those as one that differ in nothing the question depends on: usually few of very many."""
        names = {name for name, _ in asked.features}
        names |= {each for name in names for each in self.design.given.get(name, ())}
        own = [name for name in self.design.cover if name in names]
        shape = [levels(self.design.schema, name) + 1 for name in own]
        return joined(Strata({name: self._columns[name] for name in own}, self.counts), shape)

    def _faces(self, asked: Formula, strata: Strata) -> list[Face]:
        """The largest sets of criteria that were counted together."""
        names = [name for name, _ in asked.features]
        cover, given = self.design.cover, self.design.given
        sets: dict[frozenset[str], Names | None] = {frozenset(names) & frozenset(cover): None}
        for name in names:
            if name not in cover:
                sets.setdefault(frozenset(names) & {name, *given[name]}, (*given[name], name))
        for size in (3, 2):
            for group in map(frozenset, combinations(names, size)):
                if group in self._named:
                    sets.setdefault(group, self._named[group])
        found: list[Face] = []
        largest: list[frozenset[str]] = []
        for group in sorted(sets, key=len, reverse=True):
            if group and not any(group <= other for other in largest):
                largest.append(group)
                found.append(self._face(asked, group, sets[group], strata))
        return found

    def _face(self, asked: Formula, group: frozenset[str], table: Names | None, strata: Strata) -> Face:
        mask = sum(1 << j for j, (name, _) in enumerate(asked.atoms) if name in group)
        if table is None:
            number, width = self._cover_cells(asked, strata)
            return Face(mask, np.bincount(number, strata.counts, 2**width))
        found, codes = self.tables[table], dict(asked.features)
        for name in table:  # each turn takes the first axis away, and puts its cells last
            if name in group:
                found = np.tensordot(found, signatures(codes[name], found.shape[0]), (0, 1))
            else:
                found = found.sum(0)
        return Face(mask, _flat(found, [name for name in table if name in group], asked))

    def _cover_cells(self, asked: Formula, strata: Strata) -> tuple[np.ndarray, int]:
        """Of each stratum, the cell of the cover's criteria that it is in, [S]; and how many criteria these are."""
        number, width = np.zeros(len(strata.counts), np.int64), 0
        for name, codes in asked.features:
            if name in self.design.cover:
                cell = signatures(codes, levels(self.design.schema, name) + 1)
                number |= cell.argmax(0)[strata.codes[name]] << width
                width += len(codes)
        return number, width

    def prior(self, asked: Formula) -> np.ndarray:
        """[2^k] rows that the graph expects in each cell."""
        return self._prior(asked, self._joined(asked))

    def _prior(self, asked: Formula, strata: Strata) -> np.ndarray:
        cell, width = self._cover_cells(asked, strata)
        shares = {}
        for name, codes in asked.features:
            if name not in self.design.cover:
                table = self.tables[*self.design.given[name], name]
                own = table @ signatures(codes, table.shape[-1]).T / np.maximum(table.sum(-1, keepdims=True), 1)
                shares[name] = Share(self.design.given[name], own)
        sizes = {name: levels(self.design.schema, name) + 1 for name in strata.codes}
        cells, order = summed_out(strata, shares, sizes, cell, 2**width)
        criteria = {name: 2 ** len(codes) for name, codes in asked.features}
        order += [name for name, _ in reversed(asked.features) if name in self.design.cover]
        return _flat(cells.reshape([criteria[name] for name in order]), order, asked)

    def error(self, predicted: np.ndarray) -> np.ndarray:
        """Standard deviation of the truth about what is predicted, in rows.

        A population is one draw of what makes it: its counts scatter as Poisson's about a model that is right.
        """
        expected = np.maximum(predicted, 0.5)
        return np.hypot(self.errors[self.decade(expected)] * expected, np.sqrt(expected))

    def decade(self, rows: np.ndarray) -> np.ndarray:
        share = np.clip(np.maximum(rows, 0.5) / self.population, 1e-12, 1)
        return np.minimum(DECADES - 1, -np.log10(share)).astype(int)


def _flat(array: np.ndarray, names: Sequence[str], asked: Formula) -> np.ndarray:
    """From an axis a feature, in the order of `names`, to cells: the first criterion is the lowest bit."""
    order = [name for name, _ in asked.features if name in names]
    return array.transpose([names.index(name) for name in reversed(order)]).ravel()


def raked(cells: np.ndarray, faces: Sequence[Face], k: int) -> np.ndarray:
    """The cells nearest in KL whose sums are those of every face."""
    number, found = np.arange(2**k), cells.copy()
    places = []
    for face in faces:
        bits = [j for j in range(k) if face.mask >> j & 1]
        places.append(sum(((number >> j & 1) << i) for i, j in enumerate(bits)) + np.zeros(2**k, np.int64))
    for _ in range(ROUNDS):
        close = True
        for face, at in zip(faces, places, strict=True):
            there = np.bincount(at, found, len(face.cells))
            close = close and bool((np.abs(there - face.cells) <= TOLERANCE * (face.cells + 50)).all())
            found *= (face.cells / np.maximum(there, 1e-300))[at]
        if close:
            break
    return found


def fitted(model: Model, expected: Sequence[Expected], truth: np.ndarray) -> Model:
    """The model with its errors learned. expected, truth [trials]: what it says of each trial, and the rows that match,
    counted in full."""
    predicted = np.array([each.cells[-1] for each in expected])
    rows = np.maximum(predicted, 0.5)
    squares = ((truth - predicted) / rows) ** 2 - 1 / rows  # less what chance makes
    errors = by_decade(model.decade(rows), squares, lambda own: math.sqrt(max(0.0, float(np.mean(own)))), 1.0)
    return replace(model, errors=errors)


def by_decade(decades: np.ndarray, values: np.ndarray, figure: Figure, start: float) -> np.ndarray:
    """The figure of each decade's values; those with few share their neighbour's."""
    found, waiting = np.full(DECADES, start), values[:0]
    for i in range(DECADES):
        own = values[decades == i]
        waiting = np.concatenate([waiting if len(waiting) < ENOUGH else waiting[:0], own])
        found[i] = figure(waiting) if len(waiting) else found[max(0, i - 1)]
    return found


def save(model: Model, path: Path) -> None:
    tables = {f"table {i}": table.astype(np.int64) for i, table in enumerate(model.tables.values())}
    held = {"strata": model.strata, "counts": model.counts, "errors": model.errors, "stretch": model.stretch}
    with path.open("wb") as file:
        np.savez_compressed(file, **held, **tables)


def load(path: Path, design: Design) -> Model:
    """Raises AudienceError for a file that is none."""
    try:
        with np.load(path, allow_pickle=False) as held:
            tables = {names: held[f"table {i}"].astype(float) for i, names in enumerate(design.tables())}
            return Model(design, compact(held["strata"]), held["counts"], tables, held["errors"], held["stretch"])
    except (OSError, ValueError, KeyError) as error:
        raise AudienceError(f"{path} is no model: {error}; build the sample again") from None
