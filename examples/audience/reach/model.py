"""What the whole population says of a conjunction, if features outside of the cover are independent given it.

Outside a vertex cover no edge of the dependency graph remains, so within a stratum the joint is a product of marginals
(Markov property). The sizes of all strata are known exactly, and so is how a feature is spread given those that it
depends on:
    N(q) = sum over strata s that q allows, N_s prod over other criteria f, P(f | s).
A question about the cover alone is answered exactly. For others this is a model, and the graph may lack edges. How
wrong it is, is measured on trials that were counted in full, by how many rows they match; `joined` weighs it
accordingly against the sample's own estimate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from examples.audience.reach.answer import Reach, Z
from examples.audience.reach.columns import levels
from examples.audience.reach.design import Design, Trial
from examples.audience.reach.schema import AudienceError, Schema

DECADES = 6
"""Errors are told apart by the share that the model predicts, in powers of ten: 1 to 0.1, 0.1 to 0.01, …"""
ENOUGH = 25
"""Trials for a decade to speak for itself; with fewer it takes its neighbour's, too."""
FEW = 30
"""Matching rows of the sample whose own variance is not to be trusted."""


@dataclass(frozen=True, eq=False)
class Model:
    """strata [S, C]: codes of the cover; counts [S]: rows of each. tables: feature -> counts [*levels of its given,
    levels], each with a last place for values the schema lacks. errors [DECADES]: relative, root mean square."""

    schema: Schema
    cover: tuple[str, ...]
    given: Mapping[str, tuple[str, ...]]
    strata: np.ndarray
    counts: np.ndarray
    tables: Mapping[str, np.ndarray]
    errors: np.ndarray

    def predict(self, trial: Trial) -> tuple[float, bool]:
        """How many rows match, and whether that is exact, as only features of the cover are asked for."""
        allowed = np.ones(len(self.strata), bool)
        others = []
        for name, codes in trial:
            if name in self.cover:
                allowed &= np.isin(self.strata[:, self.cover.index(name)], codes)
            else:
                others.append((name, codes))
        if not others:
            return float(self.counts[allowed].sum()), True
        rows, expected = self.strata[allowed], self.counts[allowed].astype(float)
        for name, codes in others:
            table = self.tables[name]
            share = table[..., list(codes)].sum(-1) / np.maximum(table.sum(-1), 1)
            expected = expected * share[tuple(rows[:, self.cover.index(each)] for each in self.given[name])]
        return float(expected.sum()), False

    def error(self, predicted: float) -> float:
        """Standard deviation of the truth about what is predicted, in rows.

        A population is one draw of what makes it: its counts scatter as Poisson's about a model that is right.
        """
        share = max(predicted, 0.5) / float(self.counts.sum())
        decade = min(DECADES - 1, int(-math.log10(min(share, 1.0))))
        return math.hypot(float(self.errors[decade]) * predicted, math.sqrt(max(predicted, 0.5)))


def joined(direct: Reach, model: Model, trial: Trial, weight_of_a_row: float) -> Reach:
    """The sample's estimate and the model's, each weighed by one over its variance."""
    predicted, exact = model.predict(trial)
    if exact:
        return replace(direct, value=predicted, low=predicted, high=predicted)
    own = model.error(predicted)
    # A few matching rows say little of how much their number varies, and none nothing: then it is Poisson's, at the
    # size that the model predicts. An estimate that is low by chance would otherwise weigh too much.
    spread = max((direct.high - direct.low) / (2 * Z), 1e-9)
    if direct.rows < FEW:
        spread = max(spread, math.sqrt(weight_of_a_row * max(predicted, weight_of_a_row)))
    weight = own**2 / (own**2 + spread**2)
    value = weight * direct.value + (1 - weight) * predicted
    half = Z * own * spread / math.hypot(own, spread)
    return replace(direct, value=value, low=max(0.0, value - half), high=value + half)


def fitted(
    design: Design, strata: np.ndarray, counts: np.ndarray, tables: Mapping[str, np.ndarray], truth: np.ndarray
) -> Model:
    """The model, with its errors learned from the trials. truth [trials]: rows that match each, counted in full."""
    model = Model(design.schema, design.cover, design.given, strata, counts, tables, np.ones(DECADES))
    population = counts.sum()
    decades: list[list[float]] = [[] for _ in range(DECADES)]  # squares of relative errors, less what chance makes
    for trial, there in zip(design.trials, truth.tolist(), strict=True):
        predicted, exact = model.predict(trial)
        if not exact:
            expected = max(predicted, 0.5)
            decade = min(DECADES - 1, int(-math.log10(min(1.0, expected / population))))
            decades[decade].append(((there - predicted) / expected) ** 2 - 1 / expected)
    errors, waiting = np.ones(DECADES), []
    for i in range(DECADES):
        waiting = (waiting if len(waiting) < ENOUGH else []) + decades[i]
        if waiting:
            errors[i] = math.sqrt(max(0.0, float(np.mean(waiting))))
        elif i:
            errors[i] = errors[i - 1]
    return replace(model, errors=errors)


def shapes(design: Design) -> dict[str, tuple[int, ...]]:
    """Of the tables: a place more a feature, for values that the schema lacks."""
    of = {name: levels(design.schema, name) + 1 for name in design.schema.names}
    return {name: (*(of[each] for each in given), of[name]) for name, given in design.given.items()}


def save(model: Model, path: Path) -> None:
    tables = {f"table {name}": table for name, table in model.tables.items()}
    with path.open("wb") as file:
        np.savez_compressed(file, strata=model.strata, counts=model.counts, errors=model.errors, **tables)


def load(path: Path, schema: Schema, cover: tuple[str, ...], given: Mapping[str, tuple[str, ...]]) -> Model:
    """Raises AudienceError for a file that is none."""
    try:
        with np.load(path, allow_pickle=False) as held:
            tables = {name: held[f"table {name}"] for name in given}
            return Model(schema, cover, given, held["strata"], held["counts"], tables, held["errors"])
    except (OSError, ValueError, KeyError) as error:
        raise AudienceError(f"{path} is no model: {error}; build the sample again") from None
