"""Prices: what the feasible candidates of a site cost, by a clock that measures here or models what is not here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from loka_compile.dispatch import roofline, timing
from loka_compile.dispatch.candidates import Fit
from loka_compile.dispatch.cost import FREE, Asked, Cost, Times
from loka_compile.dispatch.errors import Screened
from loka_compile.kernels.providers import EMULATED
from loka_compile.spec.decision import Candidate
from loka_compile.spec.options import Options
from loka_compile.spec.site import Site
from loka_compile.spec.sizes import Sizes
from loka_compile.spec.target import Target


@dataclass(frozen=True)
class Clock:
    """How long GEMMs take on a target.

    times: of several GEMMs, whose candidates have to be so many times faster than the GEMM as it is. symbolic: it takes
    sizes that are expressions, and gives times that are.
    """

    times: Callable[[Sequence[Asked], float], list[Times]]
    symbolic: bool


def clock_of(target: Target) -> Clock:
    if target.measured:
        return Clock(timing.measured, symbolic=False)
    return Clock(functools.partial(roofline.modelled, target), symbolic=True)


@dataclass(frozen=True)
class Priced:
    """A screened site with its times, in microseconds or in expressions of the batch's symbol.

    costs: of the candidates that may be chosen. source: where the times come from. lost: why other candidates were not
    timed. empty: the GEMM has no elements, and was not timed at all.
    """

    screened: Screened
    keep_us: float = 0.0
    costs: Mapping[Candidate, Cost] = field(default_factory=dict)
    source: str = ""
    lost: Mapping[Candidate, str] = field(default_factory=dict)
    empty: bool = False

    @property
    def site(self) -> Site:
        return self.screened.site

    @property
    def rejected(self) -> Mapping[Candidate, str]:
        return {**self.screened.rejected, **self.lost}


def price(sites: Mapping[str, Screened], clock: Clock, options: Options) -> dict[str, Priced]:
    """Every site at the sizes that were observed."""
    answers = price_at([(screened, screened.observed) for screened in sites.values()], clock, options)
    return dict(zip(sites, answers, strict=True))


def price_at(asked: Sequence[tuple[Screened, Sizes]], clock: Clock, options: Options) -> list[Priced]:
    """Each site at these sizes. The clock is asked once, for all of them."""
    there = [(screened, sizes) for screened, sizes in asked if not _is_empty(sizes)]
    wanted = [Asked(screened.site, sizes, _timed(screened)) for screened, sizes in there]
    times = iter(clock.times(wanted, _margin(options)))
    return [
        Priced(screened, empty=True) if _is_empty(sizes) else _priced(screened, next(times))
        for screened, sizes in asked
    ]


def _timed(screened: Screened) -> list[Fit]:
    return [fit for fit in screened.feasible if fit.provider != EMULATED]


def _priced(screened: Screened, times: Times) -> Priced:
    known = {
        fit.candidate: FREE if fit.provider == EMULATED else times.costs.get(fit.candidate) for fit in screened.feasible
    }
    costs = {candidate: cost for candidate, cost in known.items() if cost is not None}
    return Priced(screened, times.keep_us, costs, times.source, times.lost)


def _margin(options: Options) -> float:
    """How many times faster than the GEMM as it is a candidate has to be, to be of interest. Where speed does not
    matter, twice as slow is."""
    return options.min_speedup or 0.5


def _is_empty(sizes: Sizes) -> bool:
    return 0 in (sizes.batch, sizes.M, sizes.N, sizes.K)
