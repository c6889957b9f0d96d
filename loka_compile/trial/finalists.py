"""Finalists: plans that race the one that was made, where times of single GEMMs cannot tell them apart.

    finalist = one recipe at every site where it is within the error budgets, whatever its time; elsewhere as planned

Times of single GEMMs do not add up to a graph's: what Inductor fuses around a product depends on its neighbours' forms
too. A Wukong's plan had bf16 at four thin layers, each faster alone, and its graph was 4 % slower than with int8 there
(2 cores, Zen 5). So a uniform plan whose times come near the plan's runs against it (race.py), and no uniform recipe
that is within the budgets is left that would have been faster.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from loka_compile.kernels.providers import PROVIDERS
from loka_compile.spec.decision import Candidate, Decision
from loka_compile.spec.options import Options
from loka_compile.spec.plan import Plan
from loka_compile.spec.target import TARGETS

NEAR = 1.05
"""A plan whose GEMMs take this many times as long, by single times, has no chance in the graph: single times were wrong
by 4 % at most. Each finalist takes about as long to compile as Inductor alone."""
SHARE = 0.03
"""Nor has a plan that changes sites of less than this share of the GEMMs' time: a race cannot tell what it gains."""
MOST = 2
"""Each is compiled, once a machine, to be raced."""


def finalists(plan: Plan, options: Options) -> list[Plan]:
    """The nearest uniform plans, at most MOST, by their sites' single times. None where nothing would be raced: on
    hardware that is not here, where speed is no matter, or where choices depend on the batch."""
    ranged = any(decision.ranges for decision in plan.decisions.values())
    if not (TARGETS[plan.target].measured and options.min_speedup and options.race and plan.lowered) or ranged:
        return []
    limit = NEAR * time_us(plan)
    others = (_uniform(plan, candidate) for recipe in options.recipes for candidate in _candidates(plan, recipe))
    near = [other for other in others if other is not None and time_us(other) <= limit and _matters(plan, other)]
    return sorted(near, key=time_us)[:MOST]


def _candidates(plan: Plan, recipe: str) -> list[Candidate]:
    """Candidates of the recipe that were timed at some site: PyTorch's own kernels only, where there are any."""
    timed = [candidate for name in PROVIDERS if _timed(plan, candidate := Candidate(recipe, name))]
    return [each for each in timed if PROVIDERS[each.provider].native] or timed


def _timed(plan: Plan, candidate: Candidate) -> bool:
    scores = (decision.scores.get(str(candidate)) for decision in plan.decisions.values())
    return any(score is not None and score.time_us is not None for score in scores)


def time_us(plan: Plan) -> float:
    """The GEMMs' single times, casts included, in microseconds."""
    return sum(decision.score.time_us or 0.0 for decision in plan.decisions.values())


def saves_us(plan: Plan) -> float:
    """Microseconds that its GEMMs save, by single times; infinite if one is not known."""
    times = [(decision.before.time_us, decision.score.time_us) for decision in plan.lowered]
    return sum(math.inf if before is None or after is None else before - after for before, after in times)


def _matters(plan: Plan, other: Plan) -> bool:
    changed = [each.decisions[key].score.time_us or 0.0 for key in changes(plan, other) for each in (plan, other)]
    return sum(changed) / 2 >= SHARE * time_us(plan)


def _uniform(plan: Plan, candidate: Candidate) -> Plan | None:
    """None where it is the plan itself."""
    changed = {key: _with(decision, candidate) for key, decision in plan.decisions.items() if _may(decision, candidate)}
    return replace(plan, decisions={**plan.decisions, **changed}) if changed else None


def _may(decision: Decision, candidate: Candidate) -> bool:
    """Only what is within the budgets was timed."""
    score = decision.scores.get(str(candidate))
    return decision.chosen != candidate and score is not None and score.time_us is not None


def _with(decision: Decision, candidate: Candidate) -> Decision:
    reason = f"{candidate} wherever it is within the error budgets: that graph was faster, measured here"
    rejected = tuple((other, why) for other, why in decision.rejected if other != candidate)
    if decision.lowered:
        rejected = (*rejected, (decision.chosen, f"faster alone; the graph was faster with {candidate}, measured here"))
    return replace(decision, chosen=candidate, reason=reason, rejected=rejected)


def changes(plan: Plan, other: Plan) -> Iterator[str]:
    """Keys of the sites that the two plans decide differently."""
    return (key for key, decision in plan.decisions.items() if other.decisions[key].chosen != decision.chosen)
