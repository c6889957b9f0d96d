"""The story of a compilation: what `torch.compile(model, backend="loka")` does with one graph.

1. read the options
2. run the passes on the Dynamo graph, with those asked for that change the model, then exact algebra
3. settle the plan: given, or dispatched from a profile, or learned online: then the first calls are only measured
4. hand the graph to AOTAutograd and Inductor, our passes in their two hooks; plans made here are raced, and
   so is a graph that exact algebra made simpler
5. keep what is needed to tell the story again (inspect/)
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from torch import Tensor, fx

from loka_compile import compat
from loka_compile.dispatch.progress import progress
from loka_compile.graph.left_alone import reason_to_leave
from loka_compile.graph.rerun import is_training
from loka_compile.inspect.compiled import CompiledGraph, forget_all, remember
from loka_compile.inspect.traced import trace
from loka_compile.inspect.versions import source_fingerprint
from loka_compile.online import Calls, Sessions, forget_sessions, learns
from loka_compile.passes import PIPELINE, Pipeline
from loka_compile.passes.adapt.adapting import adapting
from loka_compile.passes.base import Context
from loka_compile.passes.dynamo import Change, Read, rewritten
from loka_compile.passes.stages import Stages
from loka_compile.probe.profile import ProfileError
from loka_compile.spec.options import Options, OptionsError
from loka_compile.spec.plan import Plan, PlanError
from loka_compile.trial import planning
from loka_compile.trial.budget import Trial
from loka_compile.trial.eager import eager_or_compiled
from loka_compile.trial.floor import floor_of
from loka_compile.trial.race import never_slower, simplified_or_written


def loka(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    """The backend: a Dynamo graph and its inputs in, a compiled callable out. See Options for the options.

    Raises OptionsError, PlanError, ProfileError or DeviceError, all ValueErrors, where what was given cannot be used.
    """
    try:
        return compile_graph(gm, example_inputs, mode, options)
    except (OptionsError, PlanError, ProfileError, DeviceError) as error:
        compat.raise_plainly(error)


def compile_graph(
    gm: fx.GraphModule, example_inputs: Sequence[Any], mode: str | None, options: dict[str, Any] | None
) -> Callable[..., Any]:
    """The compilation of one graph, from its options to what is called."""
    compat.say_if_untested()
    device, root = device_of(example_inputs), compat.name_root(gm)
    chosen = planning.read(Options.of(mode, options), device)
    asked_with = mode, options or {}
    online, came = learns(chosen, example_inputs), Read.of(gm)
    if reason := reason_to_leave(came.reading, example_inputs, is_training(example_inputs), online):
        return as_written(gm, example_inputs, chosen, device, asked_with, reason)
    chosen = planning.named_as_here(chosen, gm, example_inputs, root)
    if device == "cpu":
        compat.start_compiler()
    pipeline, pinned = PIPELINE.select(chosen.passes), chosen.plan is not None
    context = Context(Plan(chosen.target, {}), device, is_training(example_inputs))
    asked_for, changes = rewritten(came, pipeline.writing(adapting(chosen, compat.is_whole(gm))), context)
    writes = came.reading.written_inputs()
    of_written = Trial(asked_for.gm, example_inputs, writes)
    simpler, simplified, trial = simplify(asked_for, of_written, pipeline, chosen, context)
    last, raised = rewritten(simpler, pipeline.raising, context)
    written, gm = asked_for.gm, last.gm
    if any(change.result.rewrites for change in raised):
        trial = trial.of(gm)
    traced = () if online else (of_written, trial)  # online each compilation has inputs of its own

    def make(
        given: Options,
        inputs: Sequence[Any],
        demoted: Mapping[str, str] = MappingProxyType({}),
        settled: Callable[[Plan], Plan] = lambda plan: plan,
        tangents: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> tuple[Callable[..., Any], CompiledGraph]:
        def stages_of(plan: Plan) -> Stages:
            return Stages(pipeline, plan, device, pinned)

        def build(plan: Plan, graph: fx.GraphModule = gm) -> tuple[Callable[..., Any], list[Any]]:
            stages = stages_of(plan)
            return compat.compile_inductor(
                compat.copy_dynamo_graph(graph),
                inputs,
                joint=stages.joint,
                post_grad=stages.post_grad,
                uuid=f"{source_fingerprint()}-{plan.fingerprint}-{chosen.fingerprint}",
                patches={**compat.faster_norms(), **compat.mode_patches(chosen.mode), **chosen.inductor},
            )

        began = time.perf_counter()
        lowered = lambda plan, graph: stages_of(plan).joint(graph)  # noqa: E731
        of_written, trial = traced or (Trial(written, inputs, writes), Trial(gm, inputs, writes))
        final, made = gm, (*changes, *simplified, *raised)
        with progress():
            plans = planning.settle(given, planning.Bench(trial, lowered, device, tangents), demoted, online)
            raced = never_slower(plans, build, inputs, chosen, device, writes, floor_of(trial, inputs), online)
            if any(change.result.rewrites for change in simplified):
                floor, code = floor_of(of_written, inputs), written.code + gm.code
                unsimplified = lambda kept: build(kept, written)  # noqa: E731
                raced, ratio = simplified_or_written(raced, unsimplified, code, inputs, chosen, device, writes, floor)
                if ratio < 1:
                    reason = f"what it did was slower than the graph as written: {ratio:.2f}x its speed, measured here"
                    final, made = written, (*changes, *(change.undone(reason) for change in simplified))
            ran = eager_or_compiled(raced, written, asked_for.reading, inputs, chosen, device, writes)
        plan, (compiled, artifacts) = settled(raced.plan), ran.built
        if ran.built is not raced.built:
            if final is not written:
                made = (*changes, *(change.undone(ran.plan.raced) for change in simplified))
            final, plan = written, replace(ran.plan, origin=plan.origin)
        graph = CompiledGraph.of(final, inputs, chosen, stages_of(plan), asked_with, made)
        graph.artifacts, graph.said = artifacts, tuple(filter(None, (ran.eager,)))
        graph.seconds = time.perf_counter() - began
        trace(graph)
        return compiled, graph

    if not online:
        return remember(*make(chosen, example_inputs))
    nothing_yet = Stages(pipeline, Plan(chosen.target, {}, origin="nothing yet"), device)
    graph = CompiledGraph.of(gm, example_inputs, chosen, nothing_yet, asked_with, (*changes, *simplified, *raised))
    return Calls(gm, last.reading, example_inputs, writes, graph, make, Sessions(gm, example_inputs, chosen)).run


def as_written(
    gm: fx.GraphModule,
    inputs: Sequence[Any],
    chosen: Options,
    device: str,
    asked_with: tuple[str | None, dict[str, Any]],
    reason: str,
) -> Callable[..., Any]:
    """The graph, compiled by Inductor alone. `explain` says why; ahead of time, where nobody asks, a warning does."""
    if compat.is_ahead_of_time():
        warnings.warn(f"loka: left to Inductor: {reason}", stacklevel=2)
    plan = Plan(chosen.target, {}, origin=f"left to Inductor: {reason}")
    nothing = Stages(Pipeline((), (), (), (), ()), plan, device)
    graph = CompiledGraph.of(gm, inputs, chosen, nothing, asked_with, ())
    patches = {**compat.mode_patches(chosen.mode), **chosen.inductor}
    compiled, graph.artifacts = compat.compile_inductor(
        gm, inputs, joint=nothing.joint, post_grad=nothing.post_grad, uuid=source_fingerprint(), patches=patches
    )
    trace(graph)
    return remember(compiled, graph)


def simplify(
    written: Read, trial: Trial, pipeline: Pipeline, chosen: Options, context: Context
) -> tuple[Read, tuple[Change, ...], Trial]:
    """The graph after the passes of exact algebra, what they changed, and a trial of the result.

    A pass is undone where it costs the plan that was given a GEMM that the plan lowers, or the profile that was given a
    GEMM that the profile knows. trial: of the graph as it was written.
    """
    given = chosen.plan or chosen.profile
    target, graph = given.target if isinstance(given, Plan) else chosen.target, written
    changes: list[Change] = []
    context = replace(context, plan=Plan(target, {}))
    for each in pipeline.simplify:
        simpler, made = rewritten(graph, (each,), context)
        if any(change.result.rewrites for change in made):
            after = trial.of(simpler.gm)
            if given is not None and (reason := planning.lost(given, trial, after)):
                simpler, made = graph, tuple(change.undone(f"undone, as {reason}") for change in made)
            else:
                trial = after
        graph = simpler
        changes += made
    return graph, tuple(changes), trial


class DeviceError(ValueError):
    """A graph on a device for which loka has no kernels."""


def device_of(example_inputs: Sequence[Any]) -> str:
    """The one device type of the graph's tensors. Raises DeviceError where loka has no kernels."""
    devices = {value.device.type for value in example_inputs if hasattr(value, "device")} - {"cpu"}
    if devices - {"cuda"}:
        raise DeviceError(f"loka compiles for cpu and cuda; this graph has tensors on {', '.join(sorted(devices))}")
    return "cuda" if devices else "cpu"


def reset() -> None:
    """Forget every compiled graph, and the sessions that learn plans."""
    forget_all()
    forget_sessions()


loka.reset = reset  # type: ignore[attr-defined]  # torch._dynamo.reset() calls it
