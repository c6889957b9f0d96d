"""The story of a compilation: what `torch.compile(model, backend="loka")` does with one graph.

    1. read the options
    2. settle the plan: given, or dispatched from a profile, or learned online: then the first calls are only measured
    3. hand the graph to AOTAutograd and Inductor, our passes in their two hooks
    4. keep what is needed to tell the story again (inspect/)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from loka_compile import compat
from loka_compile.dispatch import planning
from loka_compile.dispatch.plan import Plan
from loka_compile.inspect.compiled import CompiledGraph, forget_all, remember
from loka_compile.online import session_of
from loka_compile.options import Options
from loka_compile.passes import PIPELINE
from loka_compile.passes.stages import Stages
from loka_compile.versions import source_fingerprint


def loka(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[..., Any]:
    """The backend: a Dynamo graph and its inputs in, a compiled callable out. See Options for the options."""
    chosen = Options.of(mode, options)
    device = device_of(example_inputs)

    pipeline = PIPELINE.select(chosen.passes)

    def settle(options: Options) -> Plan:
        rewriter = lambda plan, graph: Stages(pipeline, plan, device).joint(graph)  # noqa: E731
        return planning.settle(options, gm, example_inputs, rewriter)

    session = session_of(gm, example_inputs, chosen)  # None unless the plan is learned online
    plan = settle(chosen) if session is None else session.settled(settle)
    stages = Stages(pipeline, plan, device)
    graph = CompiledGraph.of(gm, example_inputs, chosen, stages, (mode, options or {}))
    if session is not None and session.measuring:
        return remember(session.measured(gm, example_inputs, graph), graph)

    compiled, graph.artifacts = compat.compile_inductor(
        gm,
        example_inputs,
        joint=stages.joint,
        post_grad=stages.post_grad,
        uuid=f"{source_fingerprint()}-{plan.fingerprint}-{chosen.fingerprint}",
        patches={**compat.mode_patches(chosen.mode), **chosen.inductor},
    )
    if session is not None:
        compiled = session.watched(compiled, compat.copy_dynamo_graph(graph.module), example_inputs, graph)
    return remember(compiled, graph)


def device_of(example_inputs: Sequence[Any]) -> str:
    """The one device type of the graph's tensors. Raises ValueError where loka has no kernels."""
    devices = {value.device.type for value in example_inputs if hasattr(value, "device")} - {"cpu"}
    if devices - {"cuda"}:
        raise ValueError(f"loka compiles for cpu and cuda; this graph has tensors on {', '.join(sorted(devices))}")
    return "cuda" if devices else "cpu"


loka.reset = forget_all  # type: ignore[attr-defined]  # torch._dynamo.reset() calls it
