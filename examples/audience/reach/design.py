"""How a population is summed up: which features make strata, which decide about which, and on what that is tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from examples.audience.reach.columns import levels
from examples.audience.reach.query import And, In, Not, Query
from examples.audience.reach.schema import Schema

Trial = tuple[tuple[str, tuple[int, ...]], ...]
"""A conjunction as codes: (name, codes that match) a criterion, each of another feature."""


@dataclass(frozen=True)
class Design:
    """cover: features (and numbers, by bucket) that make the strata, the most important first. given: each other
    feature -> the features of the cover that it depends on. trials: conjunctions that are counted in full, to learn
    how wrong the model is that follows from cover and given (model.py)."""

    schema: Schema
    cover: tuple[str, ...]
    given: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()


def conjunction(query: Query, schema: Schema) -> Trial | None:
    """A query as a conjunction of criteria of different features, or None if it is something else."""
    found: dict[str, set[int]] = {}
    for part in query.all if isinstance(query, And) else (query,):
        if isinstance(part, And):
            inner = conjunction(part, schema)
            if inner is None:
                return None
            parts = dict(inner)
        elif isinstance(part, In):
            feature = schema.feature(part.feature)
            parts = {part.feature: tuple(feature.code(value) for value in part.values)}
        elif isinstance(part, Not) and isinstance(part.of, In):
            feature = schema.feature(part.of.feature)
            without = {feature.code(value) for value in part.of.values}
            parts = {feature.name: tuple(code for code in range(len(feature.values)) if code not in without)}
        else:
            return None
        for name, codes in parts.items():
            found[name] = found[name] & set(codes) if name in found else set(codes)
    return tuple((name, tuple(sorted(codes))) for name, codes in found.items())


def drawn_trials(codes: Mapping[str, np.ndarray], schema: Schema, count: int, seed: int = 0) -> tuple[Trial, ...]:
    """Conjunctions of one to five criteria, each around the values of one row of the pilot; codes [N] by feature."""
    rng = np.random.default_rng(seed)
    made = [drawn_trial(codes, schema, rng) for _ in range(count)]
    return tuple(trial for trial in made if trial)


def drawn_trial(codes: Mapping[str, np.ndarray], schema: Schema, rng: np.random.Generator) -> Trial:
    """One of them; empty where every criterion that was drawn would hold for everybody."""
    names = [each.name for each in schema.features]
    row, trial = rng.integers(len(codes[names[0]])), []
    for name in sorted(rng.choice(names, min(len(names), rng.integers(1, 6)), replace=False).tolist()):
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
