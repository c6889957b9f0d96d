"""The draw: n rows from the parts of all files, in proportion to the strata, unbiased, the same for the same seed.

A stratum with more than N / n rows is stable and gives its proportional part. The others stand in a line, lexicographic
in the cover's features with the most important first, and rows are drawn from it at equal steps, so that neighbours
stand in for each other (US10846714B2 calls strata of at most N / n rows unstable; the line is ours). Within a stratum
the rows with the smallest keys are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from examples.audience.reach.columns import GROUP, KEY, STRATUM, USER, WEIGHT
from examples.audience.reach.part import Part
from loka_compile.sampling.allocation import largest_remainder, pair_singles


class NeedMore(Exception):
    """The parts hold too few candidates of a stratum; rate: what they should be made for."""

    def __init__(self, rate: float) -> None:
        super().__init__(f"the parts hold too few rows of a stratum; make them for a rate of {rate:.3g}")
        self.rate = rate


@dataclass(frozen=True, eq=False)
class Drawn:
    """rows: of the parts, and with each its WEIGHT and GROUP (rows of one number were drawn alike).

    sizes [G]: rows of the population that each group stands for. population: all rows. strata [S, C], counts [S]: all
    strata of the population.
    """

    rows: pa.Table
    sizes: np.ndarray
    population: int
    strata: np.ndarray
    counts: np.ndarray


def draw(parts: Sequence[Part], n: int, seed: int) -> Drawn:
    """`n` rows. Raises NeedMore where the parts were made for a much smaller sample."""
    strata, owner = np.unique(np.concatenate([each.strata for each in parts]), axis=0, return_inverse=True)
    sizes = np.bincount(owner.ravel(), np.concatenate([each.counts for each in parts])).astype(np.int64)
    offsets = np.cumsum([0, *(len(each.strata) for each in parts)])
    tables, complete = [], np.full(len(strata), 2**64 - 1, np.uint64)
    for each, start in zip(parts, offsets, strict=False):
        own = owner.ravel()[start : start + len(each.strata)]
        np.minimum.at(complete, own, each.complete)
        at = each.rows.column_names.index(STRATUM)
        tables.append(each.rows.set_column(at, STRATUM, pa.array(own[each.rows[STRATUM].to_numpy()])))
    rows = pa.concat_tables(tables)
    rows = rows.take(np.lexsort((rows[KEY].to_numpy(), rows[STRATUM].to_numpy())))
    stratum, key = rows[STRATUM].to_numpy(), rows[KEY].to_numpy()

    population = int(sizes.sum())
    wanted, weights, groups, group_sizes = allocated(sizes, min(n, population), np.random.default_rng(seed))
    held = np.bincount(stratum[key <= complete[stratum]], minlength=len(sizes))
    if (short := held < wanted).any():
        raise NeedMore(2 * n / population * float((wanted[short] / np.maximum(held[short], 1)).max()))
    firsts = np.cumsum(np.bincount(stratum, minlength=len(sizes))) - np.bincount(stratum, minlength=len(sizes))
    drawn_of = np.repeat(np.arange(len(sizes)), wanted)
    picked = firsts[drawn_of] + np.arange(len(drawn_of)) - np.repeat(np.cumsum(wanted) - wanted, wanted)
    found = rows.take(picked).append_column(WEIGHT, pa.array(weights)).append_column(GROUP, pa.array(groups))
    return Drawn(found, group_sizes, population, strata, sizes)


def allocated(sizes: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Draws of each stratum, and of each draw, in the strata's order, its weight and its group; the groups' sizes.

    sizes [S]: rows of each stratum, in the line's order.
    """
    population = sizes.sum()
    stable = sizes * n > population
    pooled = sizes[~stable].sum()
    target = np.append(sizes[stable], pooled) * (n / population)
    least = np.append(np.ones(stable.sum(), np.int64), int(pooled > 0))
    shares = largest_remainder(target, least, n)
    wanted = np.zeros(len(sizes), np.int64)
    wanted[stable] = np.minimum(shares[:-1], sizes[stable])
    step = pooled / max(1, shares[-1])
    marks = np.minimum(((rng.random() + np.arange(shares[-1])) * step).astype(np.int64), pooled - 1)
    line = np.flatnonzero(~stable)
    hit = line[np.searchsorted(np.cumsum(sizes[line]), marks, side="right")] if pooled else line[:0]
    np.add.at(wanted, hit, 1)
    drawn_of = np.repeat(np.arange(len(sizes)), wanted)
    weights = np.where(stable[drawn_of], sizes[drawn_of] / np.maximum(wanted[drawn_of], 1), step)
    alone = np.arange(len(drawn_of)) + len(sizes)
    groups = pair_singles(np.where(stable[drawn_of], drawn_of, alone))
    return wanted, weights, groups, np.bincount(groups, weights)


def drawn_users(parts: Sequence[Part], rate: float) -> Drawn:
    """All rows of the users with the smallest keys: a share `rate` of the users. Every user is a group of its own."""
    limit = np.uint64(min(1.0, rate) * (2**64 - 2**12))
    if any((each.complete < limit - np.uint64(1)).any() for each in parts):
        raise NeedMore(rate)
    rows = pa.concat_tables([each.rows for each in parts])
    rows = rows.filter(pa.array(rows[KEY].to_numpy() < limit))
    rows = rows.take(np.argsort(rows[USER].to_numpy(), kind="stable"))
    users, groups = np.unique(rows[USER].to_numpy(), return_inverse=True)
    weight = 2.0**64 / float(limit)
    population = sum(int(each.counts.sum()) for each in parts)
    rows = rows.append_column(WEIGHT, pa.array(np.full(len(rows), weight))).append_column(GROUP, pa.array(groups))
    return Drawn(rows, np.full(len(users), weight), population, np.zeros((1, 0), np.int32), np.array([population]))
