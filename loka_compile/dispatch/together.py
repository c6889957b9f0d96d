"""The choice for all sites together: what each may be, which casts they share, and the pick of each (cut.py).

A cast is paid once, by all sites that read the tensor in that form. It rides, for nearly nothing, where the kernel of
the site before can write the form itself.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from loka_compile.dispatch import cut
from loka_compile.dispatch.cost import FREE, Cast, Cost, Form
from loka_compile.dispatch.epilogue import emits, takes_epilogue
from loka_compile.dispatch.prices import Priced
from loka_compile.kernels.providers import PROVIDERS
from loka_compile.spec.decision import KEPT, Candidate

TIE = 0.03
"""Share of a kernel's time that is given up for half the noise, among a site's fastest: less than timing can tell."""
FOREIGN = 1.05
"""What another library's kernel has to win over PyTorch's own by: it costs the graph more than it costs alone. (With
oneDNN taken at any advantage a Wukong took 46.4 ms, without 43.9; 2 cores, Zen 5.)"""
SPARE = 0.012
"""Share of the GEMMs' time that may go for less noise, where it buys most of it."""
NEVER_TIMED = 1e12
"""Microseconds that let any kernel go before emulation."""

Rides = Mapping[Cast, cut.Ride]
"""The casts that have another price where a certain site is run by certain kernels."""
Picks = Mapping[str, Candidate]


@dataclass(frozen=True)
class Together:
    """All sites, and what was picked for each."""

    sites: Mapping[str, Priced]
    rides: Rides
    picks: Picks

    def casts(self, key: str) -> Sequence[Cast]:
        """The casts that the pick of a site needs."""
        cost = self.sites[key].costs.get(self.picks[key])
        return cost.casts if cost is not None else ()

    @functools.cached_property
    def users(self) -> Mapping[Form, list[str]]:
        users = defaultdict(list)
        for key in self.picks:
            for cast in self.casts(key):
                users[cast.form].append(key)
        return users

    def shared_us(self, cost: Cost) -> float:
        """A pick's kernel and an equal share of every cast, so that the times of all picks add up."""
        return cost.kernel_us + sum(self.cast_us(cast) / len(self.users[cast.form]) for cast in cost.casts)

    def cast_us(self, cast: Cast) -> float:
        ride = self.rides.get(cast)
        return ride.us if ride is not None and self.picks[ride.site] in ride.choices else cast.us

    def riding(self, key: str) -> list[str]:
        """The sites in whose epilogues a site's casts are made for nothing."""
        return [cast.made_by for cast in self.casts(key) if cast.us and not self.cast_us(cast)]

    def partners(self, key: str) -> list[str]:
        """The sites that a site shares a cast with."""
        paid = [cast for cast in self.casts(key) if self.cast_us(cast)]
        return list(dict.fromkeys(k for cast in paid for k in self.users[cast.form] if k != key))


def choose(sites: Mapping[str, Priced], min_speedup: float) -> Together:
    """The pick of every site."""
    rides = rides_of(sites)
    return Together(sites, rides, pick(problem(sites, rides, min_speedup)))


# ---------------------------------------------------------------- the problem


def problem(sites: Mapping[str, Priced], rides: Rides, min_speedup: float) -> cut.Problem:
    """All that is feasible against keeping, which loses ties.

    Low-precision times count `min_speedup` times: a margin that each group of sites that shares casts has to win
    together. Where speed does not matter (0), keeping is no choice.
    """
    forms: dict[Hashable, float] = {}
    riding: dict[Hashable, cut.Ride] = {}
    choices: dict[str, Sequence[cut.Choice]] = {}
    margin = min_speedup or 1.0
    for key, each in sites.items():
        for cast in (cast for cost in each.costs.values() for cast in cost.casts):
            forms[cast.form] = max(forms.get(cast.form, 0.0), cast.us * margin)
            if cast in rides:
                riding[cast.form] = replace(rides[cast], us=rides[cast].us * margin)
        keep = [] if each.costs and min_speedup == 0 else [cut.Choice(KEPT, each.keep_us)]
        choices[key] = [*(_choice(each, candidate, margin) for candidate in each.costs), *keep]
    return cut.Problem(choices, forms, riding)


def _choice(site: Priced, candidate: Candidate, margin: float) -> cut.Choice:
    """A kernel's time is raised a little for its noise, and for another library: what timing cannot tell, these do."""
    errors, cost = site.screened.errors, site.costs[candidate]
    timed = {other: its.alone_us for other, its in site.costs.items() if its is not FREE} or {candidate: 0.0}
    near = [other for other, us in timed.items() if us <= min(timed.values()) * (1 + TIE)]
    quietest = min(errors[other].noise for other in near)
    margin *= 1 + TIE * min(1.0, max(0.0, math.log2(errors[candidate].noise / quietest)))
    margin *= 1.0 if PROVIDERS[candidate.provider].native else FOREIGN
    us = NEVER_TIMED if cost is FREE else cost.kernel_us * margin
    return cut.Choice(candidate, us, tuple(cast.form for cast in cost.casts), errors[candidate].noise)


# ---------------------------------------------------------------- rides


def rides_of(sites: Mapping[str, Priced]) -> dict[Cast, cut.Ride]:
    """The casts that ride, each with the choices of the other site that carry it and what it costs then."""
    found = {}
    for cast in dict.fromkeys(cast for each in sites.values() for cost in each.costs.values() for cast in cost.casts):
        ride = _beside(sites, cast) if cast.beside_us else _in_epilogue(sites, cast)
        if ride is not None:
            found[cast] = ride
    return found


def _in_epilogue(sites: Mapping[str, Priced], cast: Cast) -> cut.Ride | None:
    """A cast by the kernel that makes the tensor, where that has an epilogue.

    It costs nothing only if every site that reads the tensor may take this form of it, and if the kernel sees whole
    rows. Otherwise it is a kernel of its own, as nothing is left for Inductor to fuse it with.
    """
    maker = sites.get(cast.made_by)
    if maker is None or not (takes_epilogue(maker.site) or not maker.site.epilogue):
        return None
    fusing = frozenset(candidate for candidate in maker.costs if maker.screened.fits[candidate].fuses)
    if not fusing:
        return None
    readers = [each for each in sites.values() if each.site.lhs.tensor == cast.form[0]]
    rides = cast.rides and all(cast.form in _forms(each) for each in readers) and emits(maker.site)
    return cut.Ride(cast.made_by, fusing, 0.0 if rides else cast.apart_us)


def _beside(sites: Mapping[str, Priced], cast: Cast) -> cut.Ride | None:
    """A cast by columns by the op that makes the form by rows, where another site has that."""
    for key, each in sites.items():
        choices = frozenset(c for c, cost in each.costs.items() if cast.by_rows in [its.form for its in cost.casts])
        if choices:
            return cut.Ride(key, choices, cast.beside_us)
    return None


def _forms(site: Priced) -> set[Form]:
    return {cast.form for cost in site.costs.values() for cast in cost.casts}


# ---------------------------------------------------------------- the pick


def pick(choices: cut.Problem) -> dict[str, Candidate]:
    """The fastest choices of all sites together; then the changes that remove most noise for SPARE of the time.

    Only between one lowered form and another: what keeping a site really costs, a graph's other fusions decide. (With
    sites kept for their noise a Wukong lost a fifth of its speed.)
    """
    fastest = cut.choose(choices)
    allowed = {key: _alternatives(choices.sites[key], index) for key, index in fastest.items()}
    sites = {key: [choices.sites[key][i] for i in its] for key, its in allowed.items()}
    lowered = cut.Problem(sites, choices.forms, choices.rides)
    points = cut.frontier(lowered)
    affordable = [point for point in points if point.us <= points[0].us * (1 + SPARE)]
    return {key: lowered.sites[key][index].name for key, index in affordable[-1].picks.items()}  # type: ignore[misc]


def _alternatives(choices: Sequence[cut.Choice], fastest: int) -> list[int]:
    """The fastest choice, and if it is a kernel, the other kernels."""
    others = [i for i, c in enumerate(choices) if c.name != KEPT and c.us < NEVER_TIMED and i != fastest]
    return [fastest, *(others if choices[fastest].name != KEPT else [])]
