"""Dynamic batch: times as functions of the batch, and from which batch on which choice holds.

Times are sympy expressions in the batch's symbol. Modelled ones are the roofline's own formula; measured ones are
straight lines between a few measured batches, constant below the first and in proportion above the last, so that
nothing changes where nothing was measured.

All sites are chosen together at powers of two. Where two neighbours differ, bisection finds the batch at which the
choice changes, so that few batches are looked at: each look costs a cut. Every change becomes a guard, and so one more
compilation. If there are many changes, those worth most are kept (`few`).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import sympy

from loka_compile.dispatch import cut
from loka_compile.dispatch.cost import FREE, Cast, Cost
from loka_compile.dispatch.prices import Clock, Priced, price_at
from loka_compile.dispatch.together import Picks, pick, problem, rides_of
from loka_compile.probe.profile import Profile
from loka_compile.spec.decision import Candidate, Range
from loka_compile.spec.options import Options
from loka_compile.spec.site import Site
from loka_compile.spec.sizes import Sizes

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


@dataclass(frozen=True)
class Batch:
    """The symbol that the sizes of a graph depend on, and its value when they were observed."""

    symbol: sympy.Symbol
    here: int


def batch_of(profile: Profile) -> Batch | None:
    """None where all sizes are numbers, where they depend on several symbols, or not in proportion."""
    known = [(known.site, Sizes(*known.observed)) for known in profile.sites.values()]
    sizes = [(size, seen) for site, observed in known for size, seen in _pairs(site, observed) if size.free_symbols]
    symbols = {symbol for size, _ in sizes for symbol in size.free_symbols}
    if len(symbols) != 1:
        return None
    symbol = symbols.pop()
    found = [sympy.Rational(seen, size.coeff(symbol)) for size, seen in sizes if size == size.coeff(symbol) * symbol]
    here = max(found, default=0)
    return Batch(symbol, int(here)) if here == int(here) and here >= 1 else None


def ranges(sites: Mapping[str, Priced], batch: Batch, clock: Clock, options: Options) -> dict[str, tuple[Range, ...]]:
    """By site, what is chosen from how many rows on; nothing for a site with one choice at every batch.

    sites: priced at the sizes that were observed. rows: the product of the site's sizes that depend on the batch, as in
    `Decision.rows`.
    """
    at = numbers(over_batches(sites, batch, clock, options), batch.symbol)

    @functools.cache
    def problem_at(value: int) -> cut.Problem:
        there = at(value)
        return problem(there, rides_of(there), options.min_speedup)

    @functools.cache
    def best(value: int) -> dict[str, Candidate]:
        return pick(problem_at(value))

    def us(picks: Picks, value: int) -> float:
        choices = problem_at(value)
        names = {key: [choice.name for choice in of] for key, of in choices.sites.items()}
        return choices.us({key: names[key].index(name) for key, name in picks.items()})

    last = max(MODELLED_TO, batch.here) if clock.symbolic else measured_at(batch.here)[-1]
    starts = [2, *changes(best, 2, last)]
    intervals = few([(start, best(start)) for start in starts], last, batch.here, us)
    found = {}
    for key, priced in sites.items():
        rows = rows_of(priced.site)
        own = [Range(0 if i == 0 else int(rows.subs(batch.symbol, b)), p[key]) for i, (b, p) in enumerate(intervals)]
        own = [each for i, each in enumerate(own) if i == 0 or each.chosen != own[i - 1].chosen]
        if len(own) > 1:
            found[key] = tuple(own)
    return found


def rows_of(site: Site) -> sympy.Expr:
    sizes = (site.batch, site.M, site.N, site.K)
    return math.prod((size for size in sizes if size.free_symbols), start=sympy.Integer(1))


# ---------------------------------------------------------------- times


def over_batches(sites: Mapping[str, Priced], batch: Batch, clock: Clock, options: Options) -> dict[str, Priced]:
    """Every site with times that are expressions in the batch's symbol.

    The clock is asked for sizes that depend on the batch. What it said of those that were observed holds.
    """
    points = [] if clock.symbolic else measured_at(batch.here)
    wanted = {key: _wanted(priced, batch.symbol, points) for key, priced in sites.items()}
    new = [(key, sizes) for key, own in wanted.items() for sizes in own if sizes != sites[key].screened.observed]
    answers = price_at([(sites[key].screened, sizes) for key, sizes in new], clock, options)
    at = {(key, priced.screened.observed): priced for key, priced in sites.items()}
    at |= dict(zip(new, answers, strict=True))
    found = {}
    for key, own in wanted.items():
        there = [at[key, sizes] for sizes in own] or [sites[key]]
        found[key] = _joined(there, points, batch.symbol) if len(there) > 1 else there[0]
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


def _joined(at: Sequence[Priced], points: Sequence[int], symbol: sympy.Symbol) -> Priced:
    """One site priced at several batches. A kernel that is hopeless at one of them has no casts there; if it lost far
    at one it is not timed at larger ones, and out."""
    through = lambda values: line(symbol, points, list(values))  # noqa: E731
    costs = {}
    for candidate in [candidate for candidate in at[0].costs if all(candidate in priced.costs for priced in at)]:
        each = [priced.costs[candidate] for priced in at]
        forms = dict.fromkeys(cast.form for cost in each for cast in cost.casts)
        us = [{cast.form: cast.us for cast in cost.casts} for cost in each]
        casts = tuple(Cast(form, through(by_form.get(form, 0.0) for by_form in us)) for form in forms)
        costs[candidate] = FREE if each[0] is FREE else Cost(through(cost.kernel_us for cost in each), casts)
    return replace(at[-1], keep_us=through(priced.keep_us for priced in at), costs=costs)


def numbers(sites: Mapping[str, Priced], symbol: sympy.Symbol) -> Callable[[int], dict[str, Priced]]:
    """The sites at a batch, with numbers for times."""
    flat = [expression for priced in sites.values() for expression in _expressions(priced)]
    evaluate = sympy.lambdify(symbol, flat, modules="math")

    def at(value: int) -> dict[str, Priced]:
        values = iter(evaluate(value))
        return {key: _filled(priced, values) for key, priced in sites.items()}

    return at


def _expressions(priced: Priced) -> Iterator[float]:
    yield priced.keep_us
    for cost in priced.costs.values():
        yield cost.kernel_us
        yield from (us for cast in cost.casts for us in (cast.us, cast.apart_us, cast.beside_us))


def _filled(priced: Priced, values: Iterator[float]) -> Priced:
    keep_us, costs = next(values), {}
    for candidate, cost in priced.costs.items():
        kernel_us = next(values)
        casts = [replace(cast, us=next(values), apart_us=next(values), beside_us=next(values)) for cast in cost.casts]
        costs[candidate] = FREE if cost is FREE else Cost(kernel_us, tuple(casts))
    return replace(priced, keep_us=keep_us, costs=costs)


def _wanted(priced: Priced, symbol: sympy.Symbol, points: Sequence[int]) -> list[Sizes]:
    """The sizes that a site is to be priced at: at each of the points, or symbolic ones where there are none. Nothing
    where its sizes are numbers."""
    pairs = _pairs(priced.site, priced.screened.observed)
    if not any(size.free_symbols for size, _ in pairs):
        return []
    if not points:
        return [Sizes(*(size if size.free_symbols else seen for size, seen in pairs))]
    at = lambda size, point: int(size.subs(symbol, point))  # noqa: E731
    return [Sizes(*(at(size, point) if size.free_symbols else seen for size, seen in pairs)) for point in points]


def _pairs(site: Site, observed: Sizes) -> list[tuple[sympy.Expr, int]]:
    """Each size of the site, and what it was when it was observed."""
    seen = (observed.batch, observed.M, observed.N, observed.K)
    return list(zip((site.batch, site.M, site.N, site.K), seen, strict=True))


# ---------------------------------------------------------------- intervals


def changes(pick: Callable[[int], Picks], low: int, high: int) -> list[int]:
    """The batches above `low`, up to `high`, from which on another choice is made.

    Two changes that cancel between neighbouring powers of two are not seen.
    """
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
    """At most `most` of the intervals, and none that is not worth its compilation.

    The trick: for every interval, what is lost if a neighbour's choices served it too? The loss is a share of time, at
    the octave of the interval where it is largest, divided by what an interval there has to be worth. As long as there
    are too many, or the smallest loss is below 1, that interval goes to that neighbour. The interval of the observed
    batch never goes.
    """
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
