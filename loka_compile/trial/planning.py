"""Settling the plan of one graph: given, dispatched from a profile, or from a look at the first batch.

    made         the plan, from where the options say
    contenders   the plan and its finalists, without the sites that may not be lowered     data alone
    tried        each on the graph, until its errors are within the budgets                run on a Bench

A plan that is given is followed to the letter. One that is made here is tried first: the rewritten graph's outputs are
compared with the original's on the inputs at hand (budget.py), in training its gradients too (gradients.py). Sites are
demoted, those first that make the most noise for the time they save, until the errors are within `max_output_error` and
`max_gradient_error`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from loka_compile import compat
from loka_compile.dispatch import progress
from loka_compile.dispatch.choose import dispatch
from loka_compile.dispatch.names import in_names_of, stands_for
from loka_compile.dispatch.pin import HARDWARE, changed_pins, check_hardware
from loka_compile.dispatch.roots import without_root
from loka_compile.graph.rerun import is_training
from loka_compile.probe.profile import Profile, load_profile
from loka_compile.probe.session import profile_graph
from loka_compile.spec.decision import Decision
from loka_compile.spec.options import Options
from loka_compile.spec.plan import Plan, PlanError, load_plan
from loka_compile.spec.plan_diff import diff
from loka_compile.spec.target import TARGETS
from loka_compile.trial.budget import Rewriter, Trial, within_budget
from loka_compile.trial.finalists import changes, finalists
from loka_compile.trial.gradients import Step, gradients_within_budget, step_of
from loka_compile.trial.runnable import runnable


@dataclass(frozen=True)
class Bench:
    """The graph that a plan is for, and what its plans are tried with.

    trial: the graph on the inputs at hand. rewriter: makes of it what a plan says. device: where it runs. tangents:
    gradients of its outputs that were seen (gradients.step_of).
    """

    trial: Trial
    rewriter: Rewriter
    device: str = "cpu"
    tangents: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def is_real(self) -> bool:
        """Whether there are inputs to run it on."""
        return not any(compat.is_fake(value) for value in self.trial.inputs)

    @cached_property
    def step(self) -> Step | None:
        """A training step of the graph; None in inference, or where nothing is to be differentiated."""
        trial = self.trial
        return step_of(trial.gm, trial.inputs, self.tangents, trial.written) if is_training(trial.inputs) else None


@dataclass(frozen=True)
class Budgets:
    """How far a plan's outputs and gradients may be off; infinity where nobody looks."""

    outputs: float = math.inf
    gradients: float = math.inf


def settle(
    options: Options, bench: Bench, demoted: Mapping[str, str] = MappingProxyType({}), online: bool = False
) -> list[Plan]:
    """The plan, unraced, with the choices for the batch at hand; behind it the finalists it has to race (finalists.py).

    demoted: by key, why a site may not be lowered. online: a plan that is given was made here, so its outputs are
    compared like those of a new one.
    """
    made = _made(options, bench)
    compared = (options.plan is None or online) and bench.is_real
    budgets = Budgets(options.max_output_error, options.max_gradient_error) if compared else Budgets()
    plans = contenders(made, options, demoted)
    plans = [at_this_batch(plan, bench.trial) for plan in plans]
    if _is_of_other_sizes(options, bench.trial.inputs, online):
        sites = bench.trial.all_sites
        plans = [runnable(plan, sites, options.min_speedup, bench.device) for plan in plans]
    return _distinct([_tried(plan, bench, budgets) for plan in plans])


def _is_of_other_sizes(options: Options, inputs: Sequence[Any], online: bool) -> bool:
    """Whether a plan made here may be of other sizes than the graph: those of another graph, or of a profile."""
    of_others = options.plan is not None if online else options.profile is not None
    return of_others or (options.plan is None and any(isinstance(value, torch.SymInt) for value in inputs))


def contenders(made: Plan, options: Options, demoted: Mapping[str, str]) -> list[Plan]:
    """The plan and, where it was made here, its finalists, without the sites that may not be lowered."""
    plans = [made, *(finalists(made, options) if options.plan is None else [])]
    return [_without(plan, demoted) for plan in plans]


def _without(plan: Plan, demoted: Mapping[str, str]) -> Plan:
    for decision in [each for each in plan.decisions.values() if each.recipes and each.site.key in demoted]:
        plan = plan.with_decision(decision.demoted(demoted[decision.site.key]))
    return plan


def _tried(plan: Plan, bench: Bench, budgets: Budgets) -> Plan:
    """The plan, as far as the graph's outputs and gradients are within the budgets under it."""
    if plan.lowered and not math.isinf(budgets.outputs):
        plan = within_budget(plan, bench.trial, budgets.outputs, bench.rewriter)
    if plan.lowered and not math.isinf(budgets.gradients) and bench.step is not None:
        plan = gradients_within_budget(plan, bench.step, budgets.gradients, bench.rewriter)
    return plan


def _distinct(plans: Sequence[Plan]) -> list[Plan]:
    """Without finalists that came to the same choices as the first."""
    first, *others = plans
    return [first, *(other for other in others if any(changes(first, other)))]


# ---------------------------------------------------------------- where a plan comes from


def _made(options: Options, bench: Bench) -> Plan:
    """Given, dispatched from the profile that is given, or from a look at the first batch."""
    trial = bench.trial
    if options.plan is not None:
        return _given(options, bench.device)
    if options.profile is not None:
        plan = dispatch(_as_in(options.profile, trial), options=options)
        return replace(plan, origin=", ".join(filter(None, (plan.origin, stands_for(options.profile)))))
    if not bench.is_real:
        return Plan(options.target, {}, origin="nothing: no plan, no profile, and no real inputs to look at")
    progress.say("scoring recipes on the operands of the first batch")
    profile = profile_graph(trial.gm, trial.inputs, options.recipes, budget=options.error_budget)
    plan = dispatch(_as_in(profile, trial), options=options)
    return replace(plan, origin="a look at the first batch, forward only")


def read(options: Options, device: str = "cpu") -> Options:
    """The options, with their plan or profile read where it is a path. Called once a compilation.

    If both are given, one is left. Which one, the hardware decides.
    """
    plan, profile = options.plan, options.profile
    if plan is not None and not isinstance(plan, Plan):
        options = replace(options, plan=load_plan(plan))
    if profile is not None and not isinstance(profile, Profile):
        options = replace(options, profile=load_profile(profile))
    return options if options.plan is None or options.profile is None else _plan_or_profile(options, device)


def _plan_or_profile(options: Options, device: str) -> Options:
    """The options with one of the two: the plan if it was made on this hardware, else the profile. Where it is the
    profile, a warning says what differs."""
    plan: Plan = options.plan
    if HARDWARE not in changed_pins(plan, TARGETS[plan.target], device):
        return replace(options, profile=None, on_other_hardware="refuse")
    options = replace(options, plan=None)
    said = "loka: the plan was made on other hardware, a new one is made from the profile:"
    hardware = changed_pins(plan, TARGETS[plan.target], device)[HARDWARE]
    difference = str(diff(plan, dispatch(options.profile, options=options)))
    warnings.warn("\n  ".join([said, f"hardware: {hardware}", *difference.splitlines()]), stacklevel=2)
    return options


def named_as_here(options: Options, gm: fx.GraphModule, inputs: Sequence[Any], root: str = "") -> Options:
    """The options with the plan or the profile given in the names of this graph. root: what the code that is compiled
    calls the model; plans that were made before that was left out of the names have it in theirs."""
    return in_names_of(without_root(options, root), gm, lambda: Trial(gm, inputs).all_sites)


def lost(given: Plan | Profile, written: Trial, simpler: Trial) -> str:
    """The decisions that a simpler graph loses; empty if none.

    It loses GEMMs that the profile or the pinned plan does not know any more (a pinned plan would be refused then), or
    GEMMs that the plan lowers, here or at another batch.
    """
    before, after = ([given.find(site) for site in trial.all_sites] for trial in (written, simpler))
    if (isinstance(given, Profile) or given.pins) and after.count(None) > before.count(None):
        return f"the {type(given).__name__.lower()} given knows GEMMs as they are written"
    if isinstance(given, Profile):
        return ""
    lowered = [sum(isinstance(d, Decision) and bool(d.recipes) for d in found) for found in (before, after)]
    return "the plan given lowers GEMMs as they are written" if lowered[1] < lowered[0] else ""


def _given(options: Options, device: str) -> Plan:
    plan: Plan = options.plan
    if options.target not in ("cpu", plan.target):
        raise PlanError(f"the plan is for {plan.target}, target={options.target!r} was asked for: leave target out")
    check_hardware(plan, TARGETS[plan.target], device)
    return plan


def _as_in(profile: Profile, trial: Trial) -> Profile:
    """The profile with this graph's sizes: expressions in the batch's symbol, if the graph is for any batch."""
    if not any(isinstance(value, torch.SymInt) for value in trial.inputs):
        return profile
    sites = dict(profile.sites)
    for site in trial.all_sites:
        known = profile.find(site)
        if known is not None:
            key = next(key for key, each in sites.items() if each is known)
            sites[key] = replace(known, site=site)
    return replace(profile, sites=sites)


def at_this_batch(plan: Plan, trial: Trial) -> Plan:
    """The plan with the choices for the batch at hand. If the batch may change, guards hold it within their range."""
    if not any(decision.ranges for decision in plan.decisions.values()):
        return plan
    for site in trial.all_sites:
        decision = plan.find(site)
        if decision is None or not decision.ranges:
            continue
        rows = decision.rows(site)
        here = compat.hint_of(rows, trial.inputs)
        low, high = decision.bounds(here)
        compat.guard_sizes(trial.inputs, rows >= low, *([rows < high] if high is not None else []))
        plan = plan.with_decision(decision.at(here))
    return plan
