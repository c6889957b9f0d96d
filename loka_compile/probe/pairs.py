"""Errors on drawn operands: many small products of every site, with intervals, until they are clear.

A pair is some rows of the left operand and some columns of the right one, drawn from what was learned (100 pairs a
site: LoKA Probe). At 25, 50 and 100 pairs the intervals are looked at, and a recipe whose intervals clear its budgets
on one side or the other is done. Each look's level is a third of 5 %, so that stopping early does not cost the 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from torch import Tensor

from loka_compile.probe.score import ErrorScore, emulate, product, runs, score
from loka_compile.probe.statistics import OperandStats
from loka_compile.spec.error_budget import DEFAULT, ErrorBudget
from loka_compile.spec.recipes import Recipe
from loka_compile.spec.site import Site

PAIRS = 100
ROWS, COLUMNS = 64, 128
"""Rows of a pair's left operand, and columns of its right one: as many as share scales in `fp8_blockwise`."""
CONTRACTION = 1024
"""Longest contraction over the batch that is drawn."""
VALUES = 2**21
"""About the most values that are drawn at a time: long contractions come in fewer pairs a batch."""
QUANTILE = 2.394
"""Quantile of the normal distribution, two-sided, at 5 % over three looks."""


@dataclass(frozen=True)
class Interval:
    """About 95 %, of the mean over pairs."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimated:
    """A recipe's errors on drawn pairs."""

    pairs: int
    mere: Interval
    sqnr_db: Interval
    median_rel: Interval

    @property
    def cautious(self) -> ErrorScore:
        """The worse end of every interval."""
        return ErrorScore(self.mere.high, self.sqnr_db.low, self.median_rel.high)

    def clears(self, budget: ErrorBudget) -> bool:
        """All of both intervals is within the budget, or all of one is beyond it."""
        return budget.holds(self.mere.high, self.sqnr_db.low) or not budget.holds(self.mere.low, self.sqnr_db.high)


def estimate(
    site: Site,
    lhs: OperandStats,
    rhs: OperandStats,
    recipes: Sequence[Recipe],
    observed: tuple[int, int, int, int],
    generator: torch.Generator,
    pairs: int = PAIRS,
    budget: ErrorBudget = DEFAULT,
) -> dict[str, Estimated]:
    """Errors by recipe; none where an operand was never seen with finite values or the two do not fit.

    observed: batch, M, N, K. budget: drawing stops where it is surely met or surely missed.
    """
    scores: dict[str, list[ErrorScore]] = {recipe.name: [] for recipe in recipes}
    found: dict[str, Estimated] = {}
    left = list(recipes)
    for look in looks(pairs):
        done = len(scores[left[0].name]) if left else look
        while left and done < look:
            count = min(look - done, _batch(lhs, rhs, site))
            operands = draw(site, lhs, rhs, observed, count, generator)
            if operands is None:
                return {}
            for recipe in left:
                scores[recipe.name] += _scores(recipe, site, lhs, rhs, *operands)
            done += count
        found |= {recipe.name: summary(scores[recipe.name]) for recipe in left}
        left = [recipe for recipe in left if not found[recipe.name].clears(budget)]
    return found


def looks(pairs: int) -> list[int]:
    """Counts at which the intervals are looked at: a quarter, half, all."""
    return sorted({max(1, pairs // 4), max(1, pairs // 2), pairs}) if pairs else []


def summary(scores: Sequence[ErrorScore]) -> Estimated:
    fields = ([getattr(each, name) for each in scores] for name in ("mere", "sqnr_db", "median_rel"))
    return Estimated(len(scores), *map(interval, fields))


def interval(values: Sequence[float]) -> Interval:
    """The confidence interval of the mean. Where a value is not finite, both ends are that value: inf for the SQNR of
    an exact product, say."""
    odd = [value for value in values if not math.isfinite(value)]
    if odd:
        finite = [value for value in values if math.isfinite(value)]
        worst, mean = min(odd), fmean(finite) if finite else odd[0]
        return Interval(min(worst, mean), max(max(odd), mean))
    half = QUANTILE * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    mean = fmean(values)
    return Interval(mean - half, mean + half)


def _scores(recipe: Recipe, site: Site, lhs: OperandStats, rhs: OperandStats, a: Tensor, b: Tensor) -> list[ErrorScore]:
    # an outlier that is hardly ever drawn still sets the scale of its tensor
    amax = max(lhs.amax, a.abs().max().item()), max(rhs.amax, b.abs().max().item())
    out, reference = emulate(recipe, a, b, site.gradient, amax), product(a, b)
    return [score(*pair) for pair in zip(out, reference, strict=True)]


def _batch(lhs: OperandStats, rhs: OperandStats, site: Site) -> int:
    if lhs.distribution is None:
        return 1
    length = CONTRACTION if site.role == "grad_weight" else lhs.distribution.features
    return max(1, min(25, VALUES // ((ROWS + COLUMNS) * length)))


def draw(
    site: Site,
    lhs: OperandStats,
    rhs: OperandStats,
    observed: tuple[int, int, int, int],
    count: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor] | None:
    """lhs (count, M, K) and rhs (count, K, N) in the site's dtype, M at most ROWS, N at most COLUMNS."""
    left, right = lhs.distribution, rhs.distribution
    _, m, n, k = observed
    if left is None or right is None or not min(m, n, k):
        return None
    if site.role == "grad_weight":  # samples run along the contraction: features are M and N
        samples = min(k, CONTRACTION)
        some_left, some_right = runs(left.features, ROWS, generator), runs(right.features, COLUMNS, generator)
        some_left = some_left[:ROWS]
        a = left.draw(count * samples, generator, some_left).reshape(count, samples, -1).mT
        b = right.draw(count * samples, generator, some_right).reshape(count, samples, -1)
    elif left.features != right.features:
        return None
    else:
        a = left.draw(count * min(m, ROWS), generator).reshape(count, -1, left.features)
        b = right.draw(count * min(n, COLUMNS), generator).reshape(count, -1, right.features).mT
    return a.to(site.dtype), b.to(site.dtype)
