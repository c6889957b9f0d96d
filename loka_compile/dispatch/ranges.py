"""Dynamic batch: times as functions of the batch, and from which batch on which choice holds.

Times are sympy expressions in the batch's symbol. Modelled ones are the roofline's own formula; measured ones are
straight lines between a few measured batches, constant below the first and in proportion above the last, so that
nothing changes where nothing was measured. All sites are chosen together at powers of two, and where two of these
differ, bisection finds the batch at which the choice changes. Every change becomes a guard, and so one more
compilation: of many, those that are worth most are kept.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import sympy

from loka_compile.dispatch.cost import Cast, Cost
from loka_compile.dispatch.judge import FREE, Judged, judge, judge_all, pick, problem
from loka_compile.probe.profile import Profile
from loka_compile.probe.site_profile import SiteProfile
from loka_compile.spec.decision import Candidate, Range
from loka_compile.spec.options import Options
from loka_compile.spec.sizes import Sizes
from loka_compile.spec.target import Target

MEASURED_AT = (4, 64, 1024)
"""Batches that are measured beside the one that was observed and, if that is larger, four times it."""
MODELLED_TO = 2**20
"""Largest batch that is looked at in a model."""
MOST = 4
"""Ranges of the batch, and so compilations of one graph."""
WORTH, WORTH_BELOW = 0.03, 0.2
"""What a range has to gain over its neighbour's choices, above the batch that was observed and below it: this share of
the GEMMs' time, somewhere in it. A small batch takes little time as it is, and whoever sends one waits seconds for the
compilation: a batch of 7 after 2048 waited 14 for 3 %."""

Picks = Mapping[str, Candidate]


@dataclass(frozen=True)
class Batch:
    """The symbol that the sizes of a graph depend on, and its value when they were observed."""

    symbol: sympy.Symbol
    here: int


def batch_of(profile: Profile) -> Batch | None:
    """None where all sizes are numbers, where they depend on several symbols, or not in proportion."""
    sizes = [(size, seen) for known in profile.sites.values() for size, seen in _pairs(known) if size.free_symbols]
    symbols = {symbol for size, _ in sizes for symbol in size.free_symbols}
    if len(symbols) != 1:
        return None
    symbol = symbols.pop()
    found = [sympy.Rational(seen, size.coeff(symbol)) for size, seen in sizes if size == size.coeff(symbol) * symbol]
    here = max(found, default=0)
    return Batch(symbol, int(here)) if here == int(here) and here >= 1 else None


def ranges(profile: Profile, batch: Batch, target: Target, options: Options) -> dict[str, tuple[Range, ...]]:
    """By site, what is chosen from how many rows on; nothing for a site with one choice at every batch.

    rows: the product of the site's sizes that depend on the batch, as in `Decision.rows`.
    """
    timed = times(profile, batch, target, options)
    at = functools.cache(numbers(timed, batch.symbol))

    @functools.cache
    def best(value: int) -> dict[str, Candidate]:
        return pick(problem(at(value), options))

    def us(picks: Picks, value: int) -> float:
        choices = problem(at(value), options)
        names = {key: [choice.name for choice in of] for key, of in choices.sites.items()}
        return choices.us({key: names[key].index(name) for key, name in picks.items()})

    last = measured_at(batch.here)[-1] if target.measured else max(MODELLED_TO, batch.here)
    starts = [2, *changes(best, 2, last)]
    intervals = few([(start, best(start)) for start in starts], last, batch.here, us)
    found = {}
    for key, known in profile.sites.items():
        rows = rows_of(known)
        own = [Range(0 if i == 0 else int(rows.subs(batch.symbol, b)), p[key]) for i, (b, p) in enumerate(intervals)]
        own = [each for i, each in enumerate(own) if i == 0 or each.chosen != own[i - 1].chosen]
        if len(own) > 1:
            found[key] = tuple(own)
    return found


def rows_of(known: SiteProfile) -> sympy.Expr:
    return math.prod((size for size, _ in _pairs(known) if size.free_symbols), start=sympy.Integer(1))


# ---------------------------------------------------------------- times


def times(profile: Profile, batch: Batch, target: Target, options: Options) -> dict[str, Judged]:
    """Every site judged, with times that are expressions in the batch's symbol."""
    if not target.measured:
        whole = {key: Sizes(*_sizes(known)) for key, known in profile.sites.items()}
        return {key: judge(known, whole[key], target, options) for key, known in profile.sites.items()}
    points = measured_at(batch.here)
    asked = [
        [(known, Sizes(*_sizes(known, {batch.symbol: point}))) for point in points]
        if rows_of(known).free_symbols
        else [(known, Sizes(*known.observed))]
        for known in profile.sites.values()
    ]
    judged = iter(judge_all([each for own in asked for each in own], target, options))
    found = {}
    for key, own in zip(profile.sites, asked, strict=True):
        at = list(itertools.islice(judged, len(own)))
        found[key] = _joined(at, points, batch.symbol) if len(own) > 1 else at[0]
    return found


def measured_at(here: int) -> list[int]:
    """Ascending; a point next to the observed batch says nothing new."""
    near = lambda point: 2 / 3 < point / here < 3 / 2  # noqa: E731
    return sorted({here, *(point for point in (*MEASURED_AT, max(1024, 4 * here)) if not near(point))})


def line(symbol: sympy.Symbol, points: Sequence[int], values: Sequence[float]) -> sympy.Expr:
    """Through the points; constant before the first, in proportion after the last."""
    pieces: list[tuple[sympy.Expr, sympy.Expr]] = [(sympy.Float(values[0]), symbol <= points[0])]
    for (x, y), (next_x, next_y) in itertools.pairwise(zip(points, values, strict=True)):
        slope = sympy.Float((next_y - y) / (next_x - x))  # sympy would multiply out, and large terms cancel
        pieces.append((y + sympy.Mul(slope, symbol - x, evaluate=False), symbol <= next_x))
    return sympy.Piecewise(*pieces, (symbol * sympy.Float(values[-1] / points[-1]), True))


def _joined(at: Sequence[Judged], points: Sequence[int], symbol: sympy.Symbol) -> Judged:
    """One site judged at several batches. A kernel that is hopeless at one of them has no casts there; if it lost far
    at one it is not timed at larger ones, and out."""
    through = lambda values: line(symbol, points, list(values))  # noqa: E731
    costs = {}
    for candidate in [candidate for candidate in at[0].costs if all(candidate in judged.costs for judged in at)]:
        each = [judged.costs[candidate] for judged in at]
        forms = dict.fromkeys(cast.form for cost in each for cast in cost.casts)
        us = [{cast.form: cast.us for cast in cost.casts} for cost in each]
        casts = tuple(Cast(form, through(by_form.get(form, 0.0) for by_form in us)) for form in forms)
        costs[candidate] = FREE if each[0] is FREE else Cost(through(cost.kernel_us for cost in each), casts)
    return replace(at[-1], keep_us=through(judged.keep_us for judged in at), costs=costs)


def numbers(timed: Mapping[str, Judged], symbol: sympy.Symbol) -> Callable[[int], dict[str, Judged]]:
    """The judged sites at a batch."""
    flat = [expression for judged in timed.values() for expression in _expressions(judged)]
    evaluate = sympy.lambdify(symbol, flat, modules="math")

    def at(value: int) -> dict[str, Judged]:
        values = iter(evaluate(value))
        return {key: _filled(judged, values) for key, judged in timed.items()}

    return at


def _expressions(judged: Judged) -> Iterator[float]:
    yield judged.keep_us
    for cost in judged.costs.values():
        yield cost.kernel_us
        yield from (us for cast in cost.casts for us in (cast.us, cast.apart_us))


def _filled(judged: Judged, values: Iterator[float]) -> Judged:
    keep_us, costs = next(values), {}
    for candidate, cost in judged.costs.items():
        kernel_us = next(values)
        filled = Cost(kernel_us, tuple(replace(c, us=next(values), apart_us=next(values)) for c in cost.casts))
        costs[candidate] = FREE if cost is FREE else filled
    return replace(judged, keep_us=keep_us, costs=costs)


def _pairs(known: SiteProfile) -> list[tuple[sympy.Expr, int]]:
    site = known.site
    return list(zip((site.batch, site.M, site.N, site.K), known.observed, strict=True))


def _sizes(known: SiteProfile, at: Mapping[sympy.Symbol, int] | None = None) -> Iterator[int]:
    """At a batch, or symbolic where the site is."""
    for size, seen in _pairs(known):
        if not size.free_symbols:
            yield seen
        else:
            yield int(size.subs(at)) if at is not None else size


# ---------------------------------------------------------------- intervals


def changes(pick: Callable[[int], Picks], low: int, high: int) -> list[int]:
    """The batches above `low`, up to `high`, from which on another choice is made."""
    powers = [2**i for i in range(low.bit_length(), high.bit_length()) if low < 2**i < high]
    grid = [low, *powers, high] if high > low else [low]
    return [change for a, b in itertools.pairwise(grid) for change in _between(pick, a, b)]


def _between(pick: Callable[[int], Picks], low: int, high: int) -> list[int]:
    if pick(low) == pick(high):
        return []
    if high - low == 1:
        return [high]
    middle = (low + high) // 2
    return [*_between(pick, low, middle), *_between(pick, middle, high)]


def few(
    intervals: list[tuple[int, Picks]], last: int, here: int, us: Callable[[Picks, int], float], most: int = MOST
) -> list[tuple[int, Picks]]:
    """At most `most` of them, and none that is not worth it: the one goes to a neighbour that loses least by it, in
    share of time, in the octave where that is most. The interval that the observed batch is in never goes."""
    intervals = list(intervals)
    while len(intervals) > 1:
        ends = [*(start for start, _ in intervals[1:]), last + 1]
        losses = []
        for i, (start, own) in enumerate(intervals):
            if start <= here < ends[i]:
                continue
            for j in (i - 1, i + 1):
                if 0 <= j < len(intervals):
                    octaves = (2**k * start for k in range((ends[i] // start).bit_length()) if 2**k * start < ends[i])
                    loss = max(us(intervals[j][1], b) / max(us(own, b), 1e-9) - 1 for b in octaves)
                    losses.append((loss / (WORTH_BELOW if ends[i] <= here else WORTH), i, j))
        share, gone, heir = min(losses)
        if share >= 1 and len(intervals) <= most:
            break
        first = min(gone, heir)
        intervals[first : first + 2] = [(intervals[first][0], intervals[heir][1])]
    return intervals
