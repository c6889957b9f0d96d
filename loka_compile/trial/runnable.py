"""The part of a plan that runs in this graph: a plan made at other sizes may choose what a site here cannot take.

A training step's int8 product for a weight's gradient sums over the batch. Where the batch is any number, that sum may
be too long for 32 bits, and the kernel is refused. The next choice takes its place: among those that were timed, so are
within the budgets, the fastest that runs here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from loka_compile.kernels.providers import reasons_against, runner
from loka_compile.spec.decision import Candidate, Decision, Range
from loka_compile.spec.plan import Plan
from loka_compile.spec.recipes import RECIPES
from loka_compile.spec.site import Site
from loka_compile.spec.target import TARGETS, target_of


def runnable(plan: Plan, sites: Iterable[Site], min_speedup: float, device: str) -> Plan:
    """The plan with another choice, or none, at each of the graph's sites where what it chose cannot run."""
    for site in sites:
        decision = plan.find(site)
        if decision is not None and decision.lowered and not _runs(decision.chosen, site, plan, device):
            plan = plan.with_decision(_instead(decision, site, plan, min_speedup, device))
    return plan


def _runs(candidate: Candidate, site: Site, plan: Plan, device: str) -> bool:
    return bool(runner(candidate.provider, site, RECIPES[candidate.recipe], TARGETS[plan.target], device))


def _instead(decision: Decision, site: Site, plan: Plan, min_speedup: float, device: str) -> Decision:
    was = decision.chosen
    why = "; ".join(reasons_against(was.provider, site, RECIPES[was.recipe], target_of(device)))
    reason, least = f"{was} cannot run here: {why}", decision.before.time_us or math.inf
    timed = {}
    for other, _ in decision.rejected:
        us = decision.scores[str(other)].time_us if str(other) in decision.scores else None
        if us is not None and us * min_speedup <= least and _runs(other, site, plan, device):
            timed[other] = us
    if not timed:
        return decision.demoted(reason)
    chosen = min(timed, key=lambda other: timed[other])
    rejected = (*((other, said) for other, said in decision.rejected if other != chosen), (was, reason))
    ranges = tuple(Range(each.rows, chosen if each.chosen == was else each.chosen) for each in decision.ranges)
    said = f"the fastest that runs: {reason}"
    return replace(decision, chosen=chosen, reason=said, rejected=rejected, ranges=ranges)
