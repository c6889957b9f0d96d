"""What reach is compared with: other ways to answer from as many rows, or as many entries of sketches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb
import numpy as np

from examples.audience.reach.keys import splitmix
from examples.audience.reach.query import And
from examples.audience.reach.schema import Schema
from loka_compile.sampling.allocation import largest_remainder


@dataclass(frozen=True, eq=False)
class Asked:
    """A conjunction, and the rows [N] bool of the population that match it."""

    query: And
    there: np.ndarray


def uniform(asked: Sequence[Asked], rows: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Estimates from `n` rows drawn without replacement."""
    return _scaled(asked, rng.choice(rows, n, replace=False), rows)


def duckdb_sample(asked: Sequence[Asked], rows: int, n: int, seed: int) -> np.ndarray:
    """Estimates from the rows that duckdb's USING SAMPLE picks."""
    with duckdb.connect(config={"threads": 1}) as connection:
        picked = connection.sql(
            f"select i from range({rows}) t(i) using sample reservoir({n} rows) repeatable ({seed})"
        ).fetchnumpy()["i"]
    return _scaled(asked, picked, rows)


def by_hand(asked: Sequence[Asked], strata: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Strata of the features a person picks, in proportion, at least a row each."""
    order = np.lexsort((rng.random(len(strata)), strata))
    sizes = np.bincount(strata)
    draws = np.minimum(largest_remainder(sizes * (n / len(strata)), np.ones(len(sizes), np.int64), n), sizes)
    starts = np.cumsum(sizes) - sizes
    picked = np.concatenate([order[start : start + k] for start, k in zip(starts, draws, strict=True)])
    weights = np.repeat(sizes / draws, draws)
    return np.array([weights[each.there[picked]].sum() for each in asked])


def theta_sketches(
    asked: Sequence[Asked], codes: Mapping[str, np.ndarray], schema: Schema, n: int, seed: int
) -> np.ndarray:
    """Estimates from a theta sketch a value of a feature, `n` entries in all (Dasgupta et al. 2016).

    A sketch keeps the entries with the smallest hashes; theta is the first it does not keep. A criterion is a union of
    its values' sketches, a conjunction an intersection; both have the smallest theta of their parts.
    """
    rows = len(next(iter(codes.values())))
    hashes = splitmix(np.arange(rows, dtype=np.uint64) + np.uint64(seed << 32)) / 2.0**64
    order = np.argsort(hashes)
    size = max(8, n // sum(len(each.values) for each in schema.features))
    held: dict[tuple[str, int], tuple[np.ndarray, float]] = {}
    for feature in schema.features:
        sorted_ = codes[feature.name][order]
        for code in range(len(feature.values)):
            own = hashes[order[np.flatnonzero(sorted_ == code)[: size + 1]]]
            held[feature.name, code] = (own[:size], float(own[size]) if len(own) > size else 1.0)
    found = []
    for each in asked:
        whole, theta = None, 1.0
        for part in each.query.all:
            sketches = [held[part.feature, schema.feature(part.feature).code(value)] for value in part.values]
            union = np.unique(np.concatenate([entries for entries, _ in sketches]))
            least = min(limit for _, limit in sketches)
            union = union[union < least]
            if len(union) > size:  # a union is no larger than its sketches
                union, least = union[:size], float(union[size])
            theta = min(theta, least)
            whole = union if whole is None else np.intersect1d(whole, union, assume_unique=True)
        assert whole is not None  # a conjunction has a criterion
        found.append((whole < theta).sum() / theta)
    return np.array(found)


def _scaled(asked: Sequence[Asked], picked: np.ndarray, rows: int) -> np.ndarray:
    return np.array([each.there[picked].mean() * rows for each in asked])
