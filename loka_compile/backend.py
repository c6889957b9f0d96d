"""The story of a compilation: what `torch.compile(model, backend="loka")` does with one graph.

    1. read the options
    2. settle the plan: given, or dispatched from a profile, or from a look at the first batch
    3. hand the graph to AOTAutograd and Inductor, our passes in their two hooks
    4. keep what is needed to tell the story again (inspect/)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from loka_compile import compat
from loka_compile.dispatch import planning
from loka_compile.inspect.compiled import CompiledGraph, forget_all, remember
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
    plan = planning.settle(chosen, gm, example_inputs, lambda plan, graph: Stages(pipeline, plan, device).joint(graph))
    stages = Stages(pipeline, plan, device)
    graph = CompiledGraph.of(gm, example_inputs, chosen, stages, (mode, options or {}))

    compiled, graph.artifacts = compat.compile_inductor(
        gm,
        example_inputs,
        joint=stages.joint,
        post_grad=stages.post_grad,
        uuid=f"{source_fingerprint()}-{plan.fingerprint}-{chosen.fingerprint}",
        patches={**compat.mode_patches(chosen.mode), **chosen.inductor},
    )
    return remember(compiled, graph)


def device_of(example_inputs: Sequence[Any]) -> str:
    """The one device type of the graph's tensors. Raises ValueError where loka has no kernels."""
    devices = {value.device.type for value in example_inputs if hasattr(value, "device")} - {"cpu"}
    if devices - {"cuda"}:
        raise ValueError(f"loka compiles for cpu and cuda; this graph has tensors on {', '.join(sorted(devices))}")
    return "cuda" if devices else "cpu"


loka.reset = forget_all  # type: ignore[attr-defined]  # torch._dynamo.reset() calls it
