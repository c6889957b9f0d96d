"""The choice for all sites of a graph at once: least total time, where sites share the casts of their operands.

Choosing site by site is greedy: it charges each of three readers of a tensor the whole cast, and keeps all three. Here
a form (one tensor in one format) is paid once, by whoever uses it:

    minimize  sum over sites of time(choice) + weight * noise(choice)  +  sum over forms in use of time(form)

A form may ride: it has another price, nearly none, where a certain site is run by a kernel that makes it on the way.

The trick: where every site has two choices, a minimum cut finds the optimum (project selection). A site is a node
between source and sink. Cutting it from the source costs its time as it stays, cutting it from the sink its time as it
moves. A form is a node whose cut to the sink costs its cast. An edge that cannot be cut ties each site to its forms.

With three choices or more the problem is NP-hard (facility location). So parts of the graph that share no form are
solved apart. A part with few shared forms is solved exactly: once the set of open forms is fixed, every site takes its
own cheapest choice. Any other part is improved by cuts in which every site may stay or move to one kind of choice, from
the greedy choice and other starts, until no cut helps.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import networkx as nx

EXACT_FORMS = 12
"""Most shared forms of a part whose combinations are all tried."""
GRAIN = 1e-3
"""Capacities of a cut are whole nanoseconds, so that sums are exact; a time is in microseconds."""


@dataclass(frozen=True)
class Choice:
    """One way to run a site. us: its own time. forms: the forms it reads. noise: its share of the output's error."""

    name: Hashable
    us: float
    forms: tuple[Hashable, ...] = ()
    noise: float = 0.0


@dataclass(frozen=True)
class Ride:
    """A form takes `us` instead of its own time where `site` is run by one of these choices."""

    site: str
    choices: frozenset[Hashable]
    us: float


@dataclass(frozen=True)
class Problem:
    """sites: the choices of each, at least one. forms: their microseconds. rides: forms that may take another time."""

    sites: Mapping[str, Sequence[Choice]]
    forms: Mapping[Hashable, float]
    rides: Mapping[Hashable, Ride] = field(default_factory=dict)

    def us(self, picks: Mapping[str, int]) -> float:
        """Total time of an assignment (site -> index of its choice)."""
        chosen = [self.sites[site][index] for site, index in picks.items()]
        used = {form for choice in chosen for form in choice.forms}
        return sum(choice.us for choice in chosen) + sum(self.form_us(form, picks) for form in used)

    def form_us(self, form: Hashable, picks: Mapping[str, int]) -> float:
        ride = self.rides.get(form)
        if ride is None or ride.site not in picks:
            return self.forms[form]
        return ride.us if self.sites[ride.site][picks[ride.site]].name in ride.choices else self.forms[form]

    def noise(self, picks: Mapping[str, int]) -> float:
        return sum(self.sites[site][index].noise for site, index in picks.items())


@dataclass(frozen=True)
class Point:
    """An assignment on the frontier: at some price of noise, no other costs less, time and noise together."""

    picks: Mapping[str, int]
    us: float
    noise: float


def choose(problem: Problem, weight: float = 0.0) -> dict[str, int]:
    """The assignment of least time + weight * noise: site -> index of its choice. Ties go to the earlier choice."""
    picks: dict[str, int] = {}
    for part in _parts(problem):
        picks |= _solve(_priced(part, weight))
    return {site: picks[site] for site in problem.sites}


def frontier(problem: Problem) -> list[Point]:
    """From the fastest assignment to the least noisy, the corners of the convex frontier between time and noise.

    The trick (a Lagrangian sweep): take the price of noise at which two known points cost the same, and solve for it.
    Either the solution lies below their line, and both its sides are looked at in turn, or no corner lies between them.
    """
    fastest = _point(problem, choose(problem))
    every = [choice for choices in problem.sites.values() for choice in choices]
    largest = max((choice.noise for choice in every), default=0.0)
    times = sum(abs(choice.us) for choice in every) + sum(problem.forms.values())
    dearest = 2 * times / (GRAIN * largest) if largest else 0.0
    quietest = _point(problem, choose(problem, dearest))
    return [fastest, *_between(problem, fastest, quietest), quietest] if quietest.noise < fastest.noise else [fastest]


def _between(problem: Problem, fast: Point, quiet: Point) -> Iterator[Point]:
    if fast.noise <= quiet.noise:
        return
    weight = (quiet.us - fast.us) / (fast.noise - quiet.noise)
    found = _point(problem, choose(problem, weight))
    cost = lambda point: point.us + weight * point.noise  # noqa: E731
    below = min(cost(fast), cost(quiet)) - cost(found) > GRAIN
    if not below or found.noise in (fast.noise, quiet.noise):
        return
    yield from _between(problem, fast, found)
    yield found
    yield from _between(problem, found, quiet)


def _point(problem: Problem, picks: Mapping[str, int]) -> Point:
    return Point(picks, problem.us(picks), problem.noise(picks))


# ---------------------------------------------------------------- parts


@dataclass(frozen=True)
class _Part:
    """Sites that share forms, and what is left to decide about them.

    sites: the choices of each, as (price, shared forms). The price includes the forms that only this site can use and
    that do not ride. forms: the price of each shared form. rides: by form, the site it rides on, and its price under
    each of that site's choices.
    """

    sites: Mapping[str, Sequence[tuple[float, frozenset[Hashable]]]]
    forms: Mapping[Hashable, float]
    rides: Mapping[Hashable, tuple[str, Sequence[float]]]

    def price(self, picks: Mapping[str, int]) -> float:
        chosen = [self.sites[site][index] for site, index in picks.items()]
        return sum(price for price, _ in chosen) + sum(self.form_price(form, picks) for form in _forms(self, picks))

    def form_price(self, form: Hashable, picks: Mapping[str, int]) -> float:
        if form not in self.rides:
            return self.forms[form]
        site, prices = self.rides[form]
        return prices[picks[site]]

    def burden(self, site: str, index: int, open_forms: frozenset[Hashable]) -> float:
        """Price of a choice, with that of the open forms that ride on the site."""
        riding = (self.rides[form] for form in open_forms if form in self.rides)
        return self.sites[site][index][0] + sum(prices[index] for on, prices in riding if on == site)


def _parts(problem: Problem) -> Iterator[Problem]:
    graph = nx.Graph()
    for site, choices in problem.sites.items():
        graph.add_node(("site", site))
        graph.add_edges_from((("site", site), ("form", form)) for choice in choices for form in choice.forms)
        graph.add_edges_from((("form", form), ("site", ride.site)) for form, ride in _riding(problem, choices))
    for component in nx.connected_components(graph):
        sites = {site: choices for site, choices in problem.sites.items() if ("site", site) in component}
        if sites:
            yield Problem(sites, problem.forms, problem.rides)


def _riding(problem: Problem, choices: Sequence[Choice]) -> Iterator[tuple[Hashable, Ride]]:
    for form in dict.fromkeys(form for choice in choices for form in choice.forms):
        ride = problem.rides.get(form)
        if ride is not None and ride.site in problem.sites:
            yield form, ride


def _priced(problem: Problem, weight: float) -> _Part:
    users = Counter(form for choices in problem.sites.values() for form in {f for c in choices for f in c.forms})
    riding = {form: ride for choices in problem.sites.values() for form, ride in _riding(problem, choices)}
    shared = {form: problem.forms[form] for form, count in users.items() if count > 1 or form in riding}
    rides = {
        form: (ride.site, [ride.us if c.name in ride.choices else shared[form] for c in problem.sites[ride.site]])
        for form, ride in riding.items()
    }

    def price(choice: Choice) -> float:
        own = sum(problem.forms[form] for form in set(choice.forms) - shared.keys())
        return choice.us + own + (weight * choice.noise if choice.noise else 0.0)

    sites = {
        site: [(price(choice), frozenset(choice.forms) & shared.keys()) for choice in choices]
        for site, choices in problem.sites.items()
    }
    return _Part(sites, shared, rides)


def _solve(part: _Part) -> dict[str, int]:
    if len(part.forms) <= EXACT_FORMS:
        return _try_all(part)
    first, last = {site: 0 for site in part.sites}, {site: len(c) - 1 for site, c in part.sites.items()}
    apart = not _forms(part, first) & _forms(part, last)
    if all(len(choices) <= 2 for choices in part.sites.values()) and apart and _rides_with(part, first, last):
        return _cut(part, first, last)
    return _expand(part)


def _forms(part: _Part, picks: Mapping[str, int]) -> frozenset[Hashable]:
    return frozenset().union(*(part.sites[site][index][1] for site, index in picks.items()))


def _rides_with(part: _Part, stay: Mapping[str, int], move: Mapping[str, int]) -> bool:
    """Whether a cut can express the rides: each form is cheaper if the site it rides on does what its users do."""
    with_staying = (part.rides[form] for form in _forms(part, stay) if form in part.rides)
    with_moving = (part.rides[form] for form in _forms(part, move) if form in part.rides)
    return all(prices[stay[on]] <= prices[move[on]] for on, prices in with_staying) and all(
        prices[move[on]] <= prices[stay[on]] for on, prices in with_moving
    )


def _try_all(part: _Part) -> dict[str, int]:
    """Exact: for every set of open forms, each site takes the cheapest choice that needs no other."""
    best: tuple[float, dict[str, int]] | None = None
    for count in range(len(part.forms) + 1):
        for open_forms in itertools.combinations(part.forms, count):
            picks = _best_within(part, frozenset(open_forms))
            if picks is not None and (best is None or part.price(picks) < best[0]):
                best = part.price(picks), picks
    assert best is not None
    return best[1]


def _best_within(part: _Part, open_forms: frozenset[Hashable]) -> dict[str, int] | None:
    picks = {}
    for site, choices in part.sites.items():
        possible = [index for index, (_, forms) in enumerate(choices) if forms <= open_forms]
        if not possible:
            return None
        picks[site] = min(possible, key=lambda index: part.burden(site, index, open_forms))
    return picks


# ---------------------------------------------------------------- minimum cut


def _cut(part: _Part, stay: Mapping[str, int], move: Mapping[str, int]) -> dict[str, int]:
    """The cheapest assignment in which every site stays or moves: those on the source's side of the cut move.

    Exact if no form is used by staying and by moving sites alike (it counts as paid for), and if forms ride as
    `_rides_with` wants it (others count as if the site they ride on did the same as the sites that want them).
    """
    staying, moving = _forms(part, stay), _forms(part, move)
    whole = lambda price: round(price / GRAIN)  # noqa: E731
    graph = nx.DiGraph()
    graph.add_edge("source", "sink", capacity=0)
    for site in part.sites:
        (stay_price, stay_forms), (move_price, move_forms) = part.sites[site][stay[site]], part.sites[site][move[site]]
        least = min(stay_price, move_price)  # capacities are not negative
        graph.add_edge("source", ("site", site), capacity=whole(stay_price - least))
        graph.add_edge(("site", site), "sink", capacity=whole(move_price - least))
        for form in move_forms - staying:
            graph.add_edge(("site", site), ("form", form))  # without a capacity: it cannot be cut
            graph.add_edge(("form", form), "sink", capacity=whole(part.form_price(form, move)))
            if more := max(0.0, part.form_price(form, stay) - part.form_price(form, move)):
                graph.add_edge(("form", form), ("site", part.rides[form][0]), capacity=whole(more))
        for form in stay_forms - moving:
            graph.add_edge(("form", form), ("site", site))
            graph.add_edge("source", ("form", form), capacity=whole(part.form_price(form, stay)))
            if more := max(0.0, part.form_price(form, move) - part.form_price(form, stay)):
                graph.add_edge(("site", part.rides[form][0]), ("form", form), capacity=whole(more))
    _, (source_side, _) = nx.minimum_cut(graph, "source", "sink")
    return {site: move[site] if ("site", site) in source_side else stay[site] for site in part.sites}


def _expand(part: _Part) -> dict[str, int]:
    """Moves of many sites to one kind of choice, until none helps; from each site's own cheapest, and all alike."""
    longest = max(len(choices) for choices in part.sites.values())
    alone = lambda forms: sum(part.forms[form] for form in forms)  # noqa: E731
    by_itself = {s: min(range(len(c)), key=lambda i: c[i][0] + alone(c[i][1])) for s, c in part.sites.items()}
    alike = ({site: min(index, len(c) - 1) for site, c in part.sites.items()} for index in range(longest))
    return min((_improved(part, start) for start in (by_itself, *alike)), key=part.price)


def _improved(part: _Part, picks: dict[str, int]) -> dict[str, int]:
    better = True
    while better:
        better = False
        for candidate in _moves(part, picks):
            if part.price(candidate) < part.price(picks):
                picks, better = candidate, True
    return picks


def _moves(part: _Part, picks: dict[str, int]) -> Iterable[dict[str, int]]:
    longest = max(len(choices) for choices in part.sites.values())
    for index in range(longest):
        move = {site: index if index < len(choices) else picks[site] for site, choices in part.sites.items()}
        yield _cut(part, picks, move)
