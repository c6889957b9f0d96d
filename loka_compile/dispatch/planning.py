"""Settling the plan of one graph: given, dispatched from a profile, or from a look at the first batch.

A plan that is given is followed to the letter. One that is made here is tried first: the rewritten graph's outputs
are compared with the original's on the inputs at hand, and sites are demoted, worst first, until the error is
within `max_output_error`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from loka_compile import compat
from loka_compile.dispatch.choose import dispatch
from loka_compile.dispatch.pin import check_hardware
from loka_compile.dispatch.plan import Plan, PlanError, load_plan
from loka_compile.graph.site import Site
from loka_compile.graph.sites import annotate
from loka_compile.options import Options
from loka_compile.probe.profile import Profile, load_profile
from loka_compile.probe.session import profile_graph
from loka_compile.target import TARGETS

Rewriter = Callable[[Plan, fx.Graph], None]
"""Rewrites an inference graph as a plan says, with operators that run as they are."""


def settle(
    options: Options,
    gm: fx.GraphModule,
    inputs: Sequence[Any],
    rewriter: Rewriter,
    device: str = "cpu",
    demoted: Mapping[str, str] = MappingProxyType({}),
) -> Plan:
    """The plan, unraced. demoted: reasons by key of sites that may not be lowered."""
    if options.plan is not None:
        return _given(options, device)
    if options.profile is not None:
        profile = options.profile if isinstance(options.profile, Profile) else load_profile(options.profile)
        plan = dispatch(profile, options=options)
    elif any(compat.is_fake(value) for value in inputs):
        return Plan(options.target, {}, origin="nothing: no plan, no profile, and no real inputs to look at")
    else:
        profile = profile_graph(gm, inputs, options.recipes)
        plan = replace(dispatch(profile, options=options), origin="a look at the first batch, forward only")
    for decision in [decision for decision in plan.lowered if decision.site.key in demoted]:
        plan = plan.with_decision(decision.demoted(demoted[decision.site.key]))
    if plan.lowered and not any(compat.is_fake(value) for value in inputs):
        plan = within_budget(plan, gm, inputs, options.max_output_error, rewriter)
    return plan


def _given(options: Options, device: str) -> Plan:
    plan = options.plan if isinstance(options.plan, Plan) else load_plan(options.plan)
    if options.target not in ("cpu", plan.target):
        raise PlanError(f"the plan is for {plan.target}, target={options.target!r} was asked for: leave target out")
    check_hardware(plan, TARGETS[plan.target], device)
    return plan


def within_budget(plan: Plan, gm: fx.GraphModule, inputs: Sequence[Any], budget: float, rewriter: Rewriter) -> Plan:
    """The plan with its worst sites demoted until this graph's outputs are within the budget (relative RMS)."""
    sites: list[Site] = []
    reference = run(gm, inputs, lambda graph: sites.extend(gemm.site for gemm in annotate(graph)))
    while True:
        error = output_error(run(gm, inputs, functools.partial(rewriter, plan)), reference)
        here = [decision for decision in map(plan.find, sites) if decision is not None and decision.lowered]
        if error <= budget or not here:
            return plan
        worst = max(here, key=lambda decision: decision.score.mere)
        reason = f"outputs were off by {error:.2%} (budget {budget:.2%}) and this was the least accurate site"
        plan = plan.with_decision(worst.demoted(reason))


def run(gm: fx.GraphModule, inputs: Sequence[Any], rewrite: Callable[[fx.Graph], None]) -> list[Any]:
    """The graph's outputs on real inputs, op by op, after `rewrite` of its inference graph. Inputs stay as they are."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        compiled = compat.capture(compat.copy_dynamo_graph(gm), inputs, joint=rewrite, inner=_on_copies)
        with compat.outside_compilation():
            return list(compiled(*(value.detach() if isinstance(value, torch.Tensor) else value for value in inputs)))


def _on_copies(module: fx.GraphModule, is_backward: bool) -> Callable[..., Any]:
    """The graph op by op, on copies of the inputs it writes to (running statistics, say)."""
    written = [any(user.target is torch.ops.aten.copy_.default and user.args[0] is node for user in node.users)
               for node in module.graph.find_nodes(op="placeholder")]  # fmt: skip

    def on_copies(*args: Any) -> Any:
        return fx.Interpreter(module).run(*(a.clone() if w else a for a, w in zip(args, written, strict=True)))

    return on_copies


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
