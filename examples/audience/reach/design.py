"""How a population is summed up: which features make strata, which are counted together, and on what that is tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from examples.audience.reach.columns import levels
from examples.audience.reach.formula import Atom
from examples.audience.reach.margins import Names
from examples.audience.reach.schema import Schema

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
        values = {int(codes[name][row]), *rng.integers(0, size, rng.integers(0, max(1, size // 3) + 1)).tolist()}
        if len(values - {-1}) < size:
            trial.append((name, tuple(sorted(values - {-1}))))
    return tuple(trial)


def counted(trials: Sequence[Trial], codes: Mapping[str, np.ndarray]) -> np.ndarray:
    """How many rows match each trial, [trials] int64, by bitmaps of the values that occur in one."""
    rows = len(next(iter(codes.values())))
    bits: dict[tuple[str, int], np.ndarray] = {}

    def of(name: str, code: int) -> np.ndarray:
        if (name, code) not in bits:
            bits[name, code] = np.packbits(np.pad(codes[name] == code, (0, -rows % 64))).view(np.uint64)
        return bits[name, code]

    found = np.zeros(len(trials), np.int64)
    for i, trial in enumerate(trials):
        there = None
        for name, own in trial:
            either = np.bitwise_or.reduce([of(name, code) for code in own]) if own else np.zeros(1, np.uint64)
            there = either if there is None else there & either
        found[i] = int(np.bitwise_count(there).sum()) if there is not None else rows
    return found
