"""How a population is summed up: which features make strata, which are counted together, and on what that is tried."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from examples.audience.reach.columns import levels
from examples.audience.reach.formula import Atom
from examples.audience.reach.margins import Names
from examples.audience.reach.schema import Schema

MOST_VALUES = 128
"""Of one criterion of a trial. It changes nothing for features of up to 386 values."""
FEW = 512
"""Values in trials up to which a feature has a bitmap for each of them."""
Trial = tuple[Atom, ...]
"""A conjunction: (name, codes that match) a criterion, each of another feature, in the schema's order."""


@dataclass(frozen=True)
class Design:
    """cover: features (and numbers, by bucket) that make the strata, the most important first. given: each other
    feature -> the features of the cover that it depends on. margins: pairs and triples that are counted in full.
    trials: conjunctions that are counted in full, to learn how wrong the model is (model.py)."""

    schema: Schema
    cover: tuple[str, ...]
    given: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    margins: tuple[Names, ...] = ()
    trials: tuple[Trial, ...] = ()

    def tables(self) -> dict[Names, tuple[int, ...]]:
        """Features that are counted together -> places of each; the last is for values that the schema lacks."""
        names = [(*given, name) for name, given in self.given.items()] + list(self.margins)
        return {each: tuple(levels(self.schema, name) + 1 for name in each) for each in names}


def drawn_trials(
    codes: Mapping[str, np.ndarray], design: Design, count: int, seed: int = 0, attempts: int = 4
) -> tuple[Trial, ...]:
    """Conjunctions whose answer is not known, each around the values of one row of the pilot; codes [N] by feature."""
    rng = np.random.default_rng(seed)
    cover, margins = set(design.cover), set(map(frozenset, design.margins))
    given = [{*names, name} for name, names in design.given.items()]
    found: list[Trial] = []
    for _ in range(count * attempts):
        trial = drawn_trial(codes, design.schema, rng)
        asked = frozenset(name for name, _ in trial)
        if asked and asked not in margins and not asked <= cover and not any(asked <= names for names in given):
            found.append(trial)
        if len(found) == count:
            break
    return tuple(found)


def drawn_trial(codes: Mapping[str, np.ndarray], schema: Schema, rng: np.random.Generator) -> Trial:
    """A conjunction of one to five criteria; empty where every criterion that was drawn would hold for everybody."""
    names = [each.name for each in schema.features]
    row, trial = rng.integers(len(codes[names[0]])), []
    wanted = rng.choice(names, min(len(names), rng.integers(1, 6)), replace=False).tolist()
    for name in sorted(wanted, key=names.index):
        size = levels(schema, name)
        most = min(MOST_VALUES, max(1, size // 3))
        values = {int(codes[name][row]), *rng.integers(0, size, rng.integers(0, most + 1)).tolist()}
        if len(values - {-1}) < size:
            trial.append((name, tuple(sorted(values - {-1}))))
    return tuple(trial)


def counted(trials: Sequence[Trial], codes: Mapping[str, np.ndarray]) -> np.ndarray:
    """How many rows match each trial, [trials] int64, by bitmaps."""
    rows = len(next(iter(codes.values()), ()))
    asked: dict[str, set[int]] = {}
    for name, own in (atom for trial in trials for atom in trial):
        asked.setdefault(name, set()).update(own)
    matching = {name: _matching(codes[name], values) for name, values in asked.items()}
    found = np.zeros(len(trials), np.int64)
    for i, trial in enumerate(trials):
        there = None
        for name, own in trial:
            either = matching[name](own)
            there = either if there is None else there & either
        found[i] = int(np.bitwise_count(there).sum()) if there is not None else rows
    return found


def _matching(column: np.ndarray, asked: Collection[int]) -> Callable[[Sequence[int]], np.ndarray]:
    """Some codes -> the rows that have one of them, as a bitmap. asked: all codes that will be wanted."""
    if len(asked) <= FEW:
        bits = {code: _packed(column == code) for code in asked}
        return lambda own: np.bitwise_or.reduce([bits[code] for code in own]) if own else _packed(column < -1)
    order = np.argsort(column, kind="stable")
    ends = np.searchsorted(column[order], np.arange(max(asked) + 2))

    def of(own: Sequence[int]) -> np.ndarray:
        there = np.zeros(len(column), bool)
        for code in own:
            there[order[ends[code] : ends[code + 1]]] = True
        return _packed(there)

    return of


def _packed(there: np.ndarray) -> np.ndarray:
    """[words] uint64, a bit a row."""
    return np.packbits(np.pad(there, (0, -len(there) % 64))).view(np.uint64)
