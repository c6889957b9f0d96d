"""Bounding gradients: a plan's step, forward and backward, against that of the graph as it is, on the batch at hand.

Errors of single sites do not tell what becomes of a gradient. A ReLU whose input is off by 1 % passes the gradient of
one row in 250 that it should have stopped, or stops it, and a sum over the batch in which terms cancel keeps their
errors: a MaskNet whose outputs were off by 0.6 % in int8 had gradients off by 13 %, and by 1.6 % with int8 in its
backward alone.

    error    over all gradients together, or root mean square over its tensors, whichever is larger
    ladder   a site may step down from its choice to any candidate with less noise, and in the end to what it was
    walk     along the frontier between time and noise, to the fastest plan whose gradients are within the budget;
             a site's noise counts as much as that of its kind, forward or backward, is seen in the gradients

The joint graph is traced once and run op by op under each plan. Gradients of its outputs are those that the last
measured call had, where one was measured; else they are drawn.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, fx

from loka_compile import compat
from loka_compile.dispatch.cut import Choice, Problem, frontier
from loka_compile.graph.rerun import own_inputs, written_inputs
from loka_compile.graph.sites import annotate
from loka_compile.probe.distribution import generator_for
from loka_compile.spec.decision import KEPT, Candidate, Decision
from loka_compile.spec.plan import Plan
from loka_compile.spec.site import Site
from loka_compile.trial.budget import Rewriter, first_within

FLOOR = 1e-3
"""A tensor's gradient counts as at least so large, in units of the size of all gradients together. The gradient of a
bias that a softmax or a norm takes out again should be zero, and is rounding errors alone."""

HEADROOM = 0.8
"""Share of the budget that a search for less noise aims at: the next batch's error is a little larger, or smaller."""

aten = torch.ops.aten


@dataclass(frozen=True)
class Step:
    """A training step of a graph: forward and backward in one graph, and what it is run on.

    module: the joint graph before any pass. args: its inputs, gradients of outputs behind the others. inputs: how many
    the others are, each of which has a gradient, or None, among the last outputs.
    """

    module: fx.GraphModule
    args: Sequence[Any]
    inputs: int

    @functools.cached_property
    def sites(self) -> list[Site]:
        return [gemm.site for gemm in annotate(compat.copy_graph(self.module.graph))]

    @functools.cached_property
    def reference(self) -> list[Tensor | None]:
        return self.gradients(lambda graph: None)

    def gradients(self, rewrite: Callable[[fx.Graph], None]) -> list[Tensor | None]:
        """Gradients of all inputs, run op by op after `rewrite` of the graph. Inputs and random state stay as they
        are."""
        with torch.no_grad(), torch.random.fork_rng(compat.cuda_devices(self.args)):
            module = fx.GraphModule(self.module, compat.copy_graph(self.module.graph))
            rewrite(module.graph)
            with compat.outside_compilation():
                outputs = fx.Interpreter(module).run(*self._own_args(), enable_io_processing=False)
        return list(outputs)[len(outputs) - self.inputs :]

    def _own_args(self) -> list[Any]:
        graph = self.module.graph
        written = {node.args[0] for node in graph.find_nodes(op="call_function", target=aten.copy_.default)}
        inputs = zip(graph.find_nodes(op="placeholder"), self.args, strict=True)
        return [value.clone() if node in written else value for node, value in inputs]

    def error(self, plan: Plan, rewriter: Rewriter) -> float:
        return gradient_error(self.gradients(functools.partial(rewriter, plan)), self.reference)


class _Called(Exception):
    """A graph was called, with these arguments."""


def step_of(
    gm: fx.GraphModule, inputs: Sequence[Any], seen: Mapping[str, Tensor], written: Collection[int] | None = None
) -> Step | None:
    """The training step of a Dynamo graph on real inputs; None where AOTAutograd finds nothing to differentiate.

    seen: gradients of outputs that were seen, by the names of the joint graph's inputs (Watcher.tangents). written:
    places of the inputs that the graph writes, where that is known already.
    """
    written = written_inputs(gm.graph) if written is None else written
    joints: list[fx.GraphModule] = []

    def joint(graph: fx.Graph) -> None:
        joints.append(fx.GraphModule(graph.owning_module, compat.copy_graph(graph)))

    def inner(module: fx.GraphModule, is_backward: bool) -> Callable[..., Any]:
        def call(*args: Any) -> NoReturn:
            raise _Called(args)

        return call

    compiled = compat.capture(compat.copy_dynamo_graph(gm), inputs, joint=joint, inner=inner)
    tangents = compat.gradients_of_outputs(joints[0].graph) if joints else []
    if not tangents:
        return None
    args: tuple[Any, ...] = ()
    with compat.outside_compilation(), torch.random.fork_rng(compat.cuda_devices(inputs)):
        try:
            compiled(*own_inputs([*map(compat.concrete, inputs)], written))
        except _Called as called:
            (args,) = called.args
    args = tuple(x.detach() if isinstance(x, Tensor) else x for x in args)
    placeholders = joints[0].graph.find_nodes(op="placeholder")
    if placeholders != [*placeholders[: len(args)], *tangents]:
        raise AssertionError(f"a joint graph takes what its forward takes ({len(args)}) and gradients of its outputs")
    given = [_tangent(node, seen.get(node.name)) for node in tangents]
    return Step(joints[0], [*args, *given], len(args))


def _tangent(node: fx.Node, seen: Tensor | None) -> Tensor:
    """The gradient of an output: as it was seen, with its rows repeated where the batch differs, or else drawn."""
    value = node.meta["val"]
    shape = [compat.concrete(size) for size in value.shape]
    if seen is not None and list(seen.shape[1:]) == shape[1:] and seen.dtype == value.dtype and seen.numel():
        if list(seen.shape) == shape:
            return seen
        return seen.index_select(0, torch.arange(shape[0], device=seen.device) % seen.shape[0])
    drawn = torch.randn(shape, generator=generator_for(0, node.name), dtype=torch.float32, device="cpu")
    return drawn.to(dtype=value.dtype, device=value.device)


def gradient_error(gradients: Sequence[Tensor | None], reference: Sequence[Tensor | None]) -> float:
    """Relative error over all gradients together, or root mean square over tensors, whichever is larger; infinite where
    only the reference is finite."""
    errors, sizes = [], []
    for made, wanted in zip(gradients, reference, strict=True):
        if made is None or wanted is None or not wanted.is_floating_point():
            continue
        finite = wanted.isfinite()
        difference = torch.where(finite, made.double() - wanted.double(), 0.0)
        if not difference.isfinite().all():
            return math.inf
        errors.append(float(difference.norm()))
        sizes.append(float(torch.where(finite, wanted.double(), 0.0).norm()))
    size = math.hypot(*sizes)
    if not size:
        return math.inf if any(errors) else 0.0
    there = [(error, own) for error, own in zip(errors, sizes, strict=True) if error or own]
    apart = [error / max(own, FLOOR * size) for error, own in there]
    return max(math.hypot(*errors) / size, math.hypot(*apart) / math.sqrt(len(apart)))


# ---------------------------------------------------------------- the walk


def gradients_within_budget(plan: Plan, step: Step, budget: float, rewriter: Rewriter) -> Plan:
    """The fastest plan on the frontier between time and noise whose gradients, on this step, are within the budget."""
    here = {d.site.key: d for d in filter(None, map(plan.find, step.sites)) if d.lowered}
    if not here or math.isinf(budget):
        return plan
    error = step.error(plan, rewriter)
    if error <= budget:
        return plan
    reason = f"gradients were off by {error:.2%} (budget {budget:.2%}) and this site makes most noise for what it saves"
    points = _ladder(here, _weights(plan, here, step, rewriter))
    plans = [_stepped(plan, here, picks, reason) for picks in points]
    within = lambda index: step.error(plans[index], rewriter) <= HEADROOM * budget  # noqa: E731
    return plans[first_within(min(1, len(plans) - 1), len(plans) - 1, within)]  # the last keeps every site


def _weights(plan: Plan, here: Mapping[str, Decision], step: Step, rewriter: Rewriter) -> dict[bool, float]:
    """For the sites of the forward (True) and of the backward (False): how much one unit of their noise adds to the
    square of the gradients' error. Measured with the other half kept."""
    weights = {}
    for forward in (True, False):
        alone, noise = plan, 0.0
        for decision in here.values():
            if (decision.site.role == "output") is not forward:
                alone = alone.with_decision(decision.demoted("asked what the others do"))
            else:
                noise += decision.score.noise
        error = step.error(alone, rewriter) if noise else 0.0
        weights[forward] = error**2 / noise if noise and math.isfinite(error) else 1.0
    return weights


def _ladder(here: Mapping[str, Decision], weights: Mapping[bool, float]) -> list[dict[str, Candidate]]:
    """Choices of these sites at each point of the frontier, from the fastest on; at the last all are kept."""
    choices = {key: list(_rungs(each, weights[each.site.role == "output"])) for key, each in here.items()}
    points = frontier(Problem(choices, {}))
    picked = [{key: choices[key][index].name for key, index in point.picks.items()} for point in points]
    return [*picked, dict.fromkeys(here, KEPT)]  # type: ignore[list-item]


def _rungs(decision: Decision, weight: float) -> list[Choice]:
    """What a site may step down to: its choice, every timed candidate with less noise, and keeping. If choices
    depend on the batch, only its choice and keeping.

    Keeping costs at least a little more time: where speed does not matter, sites go by noise alone.
    """
    noise, chosen_us = decision.score.noise, decision.score.time_us or 0.0
    keep_us = max(decision.before.time_us or 0.0, chosen_us + 1.0)
    rungs = [Choice(decision.chosen, chosen_us, (), weight * noise)]
    for candidate in _candidates(decision) if not decision.ranges else ():
        score = decision.scores[str(candidate)]
        if score.time_us is not None and score.noise < noise and score.time_us < keep_us:
            rungs.append(Choice(candidate, score.time_us, (), weight * score.noise))
    return [*rungs, Choice(KEPT, keep_us)]


def _candidates(decision: Decision) -> list[Candidate]:
    return [candidate for candidate, _ in decision.rejected if str(candidate) in decision.scores and candidate != KEPT]


def _stepped(plan: Plan, here: Mapping[str, Decision], picks: Mapping[str, Candidate], reason: str) -> Plan:
    for key, pick in picks.items():
        decision = here[key]
        if pick == KEPT:
            plan = plan.with_decision(decision.demoted(reason))
        elif pick != decision.chosen:
            rejected = [(each, why) for each, why in decision.rejected if each != pick]
            less = replace(decision, chosen=pick, rejected=(*rejected, (decision.chosen, reason)))
            plan = plan.with_decision(replace(less, reason=f"less noise than {decision.chosen}: {reason}"))
    return plan
