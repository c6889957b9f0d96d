"""In context: for hardware that is not here, plans race by the modelled time of everything that would be launched.

    unplanned   every site kept            made    the plan from single GEMMs' times
    back(f)     a family of sites in what it has without casts: its own dtype, by the fastest kernel for that

    walk: from `made` on, families are taken back as long as that is faster, a few tries: first all those whose kernels
    take longer than unplanned, then one by one, the smallest gain first. The end of the walk, `made` with all that
    casts taken back (a module's backward is two products and more, and the walk cannot tell which of them costs what),
    or `unplanned`, whichever is faster, is the plan.

Single times cannot tell what a graph costs: a cast that was to be fused with a norm takes what the norm has in float32
along, and a library's kernel has no epilogue for the activation behind it. race.py does the same on hardware that is
here, with another clock. A family is the sites of repeated modules that have one role, one shape and one choice: they
stand alike, what helps one helps all, and few graphs are compiled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from loka_compile.spec.decision import KEPT, Candidate, Decision
from loka_compile.spec.plan import Plan
from loka_compile.spec.recipes import RECIPES

TRIES = {False: 9, True: 6}
"""Graphs that are compiled at most, by whether they have a backward, which takes three times as long."""

Part = tuple[str, bool]
"""A module's name, and whether its backward is meant."""


@dataclass(frozen=True)
class Step:
    """us: what a step takes, modelled. spent: of that, by the GEMM that it is spent for."""

    us: float
    spent: Mapping[Part, float]


Clock = Callable[[Plan], Step]


def fastest(plan: Plan, clock: Clock, tries: int) -> tuple[Plan, Step]:
    """The fastest plan found, and its time. `raced`, and the decisions that changed, say with which figures."""
    none = back(plan, plan.lowered, to_keep=True)
    unplanned = clock(none)
    if not plan.lowered:
        return plan, unplanned
    at, step = plan, clock(plan)
    made, seen, bare = step, [_choices(none), _choices(plan)], None
    uncast = back(plan, [each for each in plan.lowered if _casts(each)])
    if len(seen) < tries and _choices(uncast) not in seen:
        seen.append(_choices(uncast))
        bare = uncast, clock(uncast)
    while len(seen) < tries:
        other = next((each for each in _moves(at, step, unplanned) if _choices(each) not in seen), None)
        if other is None:
            break
        seen.append(_choices(other))
        found = clock(other)
        if found.us <= step.us:  # of two that are as fast the one with fewer sites lowered
            at, step = other, found
    if bare is not None and bare[1].us < step.us:
        at, step = bare
    if unplanned.us <= step.us:
        at, step = none, unplanned
    raced = f"{step.us:.1f} us a step, {unplanned.us:.1f} unplanned, {made.us:.1f} as single GEMMs' times had it; "
    raced += f"{len(seen)} graphs modelled for {plan.target}"
    return _told(plan, replace(at, raced=raced), made, step), step


def _casts(decision: Decision) -> bool:
    return RECIPES[decision.chosen.recipe].dtype != decision.site.dtype


def _moves(plan: Plan, step: Step, unplanned: Step) -> Iterator[Plan]:
    """The plans that are worth a try from here."""
    gains = [(_gain(family, step, unplanned), family) for family in families(plan)]
    losing = [decision for gain, family in gains if gain <= 0 for decision in family]
    if losing:
        yield back(plan, losing)
    for _, family in sorted(gains, key=lambda pair: pair[0]):
        yield back(plan, family)


def _gain(family: Sequence[Decision], step: Step, unplanned: Step) -> float:
    """Microseconds that the family's modules save in the graph."""
    parts = {(d.site.fqn, d.site.role != "output") for d in family}
    return sum(unplanned.spent.get(part, 0.0) - step.spent.get(part, 0.0) for part in parts)


def families(plan: Plan) -> list[list[Decision]]:
    """The lowered sites that stand alike."""
    found: dict[object, list[Decision]] = {}
    for each in plan.lowered:
        name = re.sub(r"\d+", "*", each.site.fqn), each.site.role, str(each.site.N), str(each.site.K), each.chosen
        found.setdefault(name, []).append(each)
    return list(found.values())


def back(plan: Plan, sites: Sequence[Decision], to_keep: bool = False) -> Plan:
    """The plan with these sites as they were, or in a faster kernel that casts nothing, where there is one."""
    keys = {each.site.key for each in sites}
    changed = {
        key: replace(each, chosen=KEPT if to_keep else without_casts(each), ranges=())
        for key, each in plan.decisions.items()
        if each.site.key in keys
    }
    return replace(plan, decisions={**plan.decisions, **changed})


def without_casts(decision: Decision) -> Candidate:
    """The fastest kernel for the site in its own dtype, by single times, if another one is chosen; else none."""
    kernels = [
        (score.time_us, candidate)
        for name, score in decision.scores.items()
        for candidate in [Candidate(*name.split("/", 1))]
        if candidate != KEPT and score.time_us is not None and RECIPES[candidate.recipe].dtype == decision.site.dtype
    ]
    us, fastest = min(kernels, key=lambda pair: pair[0], default=(float("inf"), KEPT))
    worth = fastest != decision.chosen and us < (decision.before.time_us or 0.0)
    return fastest if worth else KEPT


def _choices(plan: Plan) -> tuple[tuple[str, Candidate], ...]:
    return tuple((key, each.chosen) for key, each in plan.decisions.items())


def _told(plan: Plan, best: Plan, made: Step, step: Step) -> Plan:
    """The best plan; the sites that it decides otherwise say what for."""
    changed = {}
    for key, was in plan.decisions.items():
        now = best.decisions[key]
        if now.chosen != was.chosen:
            why = f"{was.chosen} was faster by single times; the graph is faster so, modelled: {step.us:.1f} us a step"
            why += f" against {made.us:.1f} as single times had it"
            left = tuple((candidate, reason) for candidate, reason in was.rejected if candidate != now.chosen)
            changed[key] = replace(now, reason=why, rejected=(*left, (was.chosen, "slower in the graph, modelled")))
    return replace(best, decisions={**best.decisions, **changed})
