"""Trying a plan: the rewritten graph's outputs against the original's, on the inputs at hand, and which sites go first
where they are too far off.

A graph is traced once. What a plan makes of it is a rewritten copy, run op by op in its place. Sites are demoted along
the frontier between time and noise, and the point where the outputs come within the budget is found by bisection: a
step of 44 sites took 89 s when each of them was traced and tried, 8 times as long as compiling it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import fx

from loka_compile import compat
from loka_compile.dispatch import progress
from loka_compile.dispatch.cut import Choice, Problem, frontier
from loka_compile.graph.rerun import is_training, own_inputs, written_inputs
from loka_compile.graph.sites import annotate
from loka_compile.spec.decision import KEEP, Decision
from loka_compile.spec.plan import Plan
from loka_compile.spec.site import Site

Rewriter = Callable[[Plan, fx.Graph], None]
"""Rewrites an inference graph as a plan says, with operators that run as they are."""


class Trial:
    """A graph to be run op by op on real inputs, forward only, as it is or under one plan after another.

    It is traced when something is first asked of it, within the compilation by Dynamo that it belongs to.
    """

    def __init__(self, gm: fx.GraphModule, inputs: Sequence[Any], written: Collection[int] | None = None) -> None:
        """written: places of the inputs that the graph writes, where that is known already."""
        self.gm, self.inputs, self._known = gm, inputs, written
        self._now: fx.GraphModule | None = None

    def of(self, gm: fx.GraphModule) -> Trial:
        """The same of another form of the graph."""
        return Trial(gm, self.inputs, self.written)

    @functools.cached_property
    def written(self) -> Collection[int]:
        """Places of the inputs that the graph writes."""
        return written_inputs(self.gm.graph) if self._known is None else self._known

    @property
    def graph(self) -> fx.Graph:
        """The inference graph before any pass of ours."""
        return self._traced[0].graph

    @property
    def sites(self) -> list[Site]:
        """Its GEMMs as they are compiled for, forward only."""
        return self._traced[2]

    @functools.cached_property
    def all_sites(self) -> list[Site]:
        """Its GEMMs as they are compiled for, forward and, in training, backward."""
        return sites_of(self.gm, self.inputs) if is_training(self.inputs) else self.sites

    @functools.cached_property
    def reference(self) -> list[Any]:
        return self.outputs(lambda graph: None)

    def error(self, plan: Plan, rewriter: Rewriter) -> float:
        return output_error(self.outputs(functools.partial(rewriter, plan)), self.reference)

    def outputs(self, rewrite: Callable[[fx.Graph], None]) -> list[Any]:
        """After `rewrite` of the inference graph, with what it wrote into its inputs (caches, codebooks, parameters of
        an optimizer). Inputs and random state stay as they are."""
        traced, compiled, _ = self._traced
        with torch.no_grad(), torch.random.fork_rng(compat.cuda_devices(self.inputs)):
            self._now = fx.GraphModule(traced, compat.copy_graph(traced.graph))
            rewrite(self._now.graph)
            with compat.outside_compilation():
                own = own_inputs([*map(compat.concrete, self.inputs)], self.written)
                return [*compiled(*own), *(own[place].detach() for place in sorted(self.written))]

    @functools.cached_property
    def _traced(self) -> tuple[fx.GraphModule, Callable[..., Any], list[Site]]:
        """The inference graph before any pass of ours, what runs `_now` in its place, and the GEMMs."""
        traced: list[fx.GraphModule] = []
        sites: list[Site] = []

        def joint(graph: fx.Graph) -> None:
            traced.append(fx.GraphModule(graph.owning_module, compat.copy_graph(graph)))
            sites.extend(gemm.site for gemm in annotate(graph))

        def inner(module: fx.GraphModule, is_backward: bool) -> Callable[..., Any]:
            return lambda *args: fx.Interpreter(self._now).run(*args)

        with torch.no_grad():
            compiled = compat.capture(compat.forward_only(self.gm), self.inputs, joint=joint, inner=inner)
        return traced[0], compiled, sites


def sites_of(gm: fx.GraphModule, inputs: Sequence[Any]) -> list[Site]:
    """The GEMMs of a graph, forward and, in training, backward, with sizes as they are compiled for."""
    sites: list[Site] = []

    def joint(graph: fx.Graph) -> None:
        sites.extend(gemm.site for gemm in annotate(graph))

    twin = compat.copy_dynamo_graph(gm)
    compat.capture(twin, inputs, joint=joint, inner=lambda module, is_backward: module.forward)
    return sites


def within_budget(plan: Plan, trial: Trial, budget: float, rewriter: Rewriter) -> Plan:
    """The fastest plan on the frontier between time and noise whose outputs, on this graph, are within the budget: a
    relative RMS of what they were.

    The trick: along the frontier, sites are kept one after another, those first that make the most noise for the time
    they save. So the plans are a list, their errors fall along it, and bisection finds the first within the budget.
    """
    here = {d.site.key: d for d in filter(None, map(plan.find, trial.sites)) if d.lowered}
    if not here or math.isinf(budget):
        return plan
    steps: list[set[str]] = [set()]
    for kept in [*kept_along_frontier(list(here.values())), set(here)]:
        steps.append(steps[-1] | (kept & set(here)))
    errors: dict[int, float] = {}

    def at(index: int) -> Plan:
        made = plan
        for key in sorted(steps[index]):
            since = next(i for i, keys in enumerate(steps) if key in keys)
            error = errors[max(i for i in errors if i < since)]
            reason = f"outputs were off by {error:.2%} (budget {budget:.2%})"
            made = made.with_decision(here[key].demoted(f"{reason} and this site makes most noise for what it saves"))
        return made

    def within(index: int) -> bool:
        progress.say(f"trying a plan with {len(here) - len(steps[index])} GEMMs lowered against max_output_error")
        errors[index] = trial.error(at(index), rewriter)
        return errors[index] <= budget

    if within(0):
        return plan
    return at(first_within(1, len(steps) - 1, within))  # at the last every site of this graph is as it was


def first_within(low: int, high: int, within: Callable[[int], bool]) -> int:
    """The first index that is within a budget, by bisection. Noise falls from index to index, and `high` is within."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if within(middle) else (middle + 1, high)
    return low


def kept_along_frontier(lowered: Sequence[Decision]) -> list[set[str]]:
    """Keys of the sites that are kept at each point of the frontier after the fastest, at which none is."""
    choices = {d.site.key: (Choice("lower", 0.0, (), d.score.noise), Choice(KEEP, _saved_us(d))) for d in lowered}
    problem = Problem(choices, {})
    return [{key for key, pick in point.picks.items() if pick == 1} for point in frontier(problem)[1:]]


def _saved_us(decision: Decision) -> float:
    """At least a little: where speed is no matter, sites go by noise alone."""
    return max((decision.before.time_us or 0.0) - (decision.score.time_us or 0.0), 1.0)


def output_error(outputs: Sequence[Any], reference: Sequence[Any]) -> float:
    """Relative RMS error of the worst floating-point output; infinite where only the reference is finite."""
    worst = 0.0
    for out, ref in zip(outputs, reference, strict=True):
        if not (isinstance(ref, torch.Tensor) and ref.is_floating_point() and ref.numel()):
            continue
        finite = ref.isfinite()
        difference = (out.double() - ref.double())[finite]
        if not difference.isfinite().all():
            return float("inf")
        scale = ref.double()[finite].square().mean().sqrt().clamp(min=1e-30)
        worst = max(worst, float(difference.square().mean().sqrt() / scale) if difference.numel() else 0.0)
    return worst
