"""The story of a compilation: what `torch.compile(model, backend="loka")` does with one graph.

1. read the options
2. leave alone what must be left alone
3. run the passes on the Dynamo graph: those asked for that change the model, then exact algebra (passes/forms.py)
4. settle the plan: given, or dispatched from a profile, or learned online: then the first calls are only measured
5. hand the graph to AOTAutograd and Inductor, our passes in their two hooks; race what comes of it (compilation.py)
6. keep what is needed to tell the story again (inspect/)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from loka_compile import compat
from loka_compile.compilation import Asked, Compilation
from loka_compile.graph.left_alone import reason_to_leave
from loka_compile.graph.rerun import is_training
from loka_compile.inspect.compiled import CompiledGraph, forget_all, remember
from loka_compile.inspect.traced import trace
from loka_compile.inspect.versions import source_fingerprint
from loka_compile.online import Calls, Sessions, forget_sessions, learns
from loka_compile.passes import PIPELINE, Pipeline
from loka_compile.passes.dynamo import Read
from loka_compile.passes.forms import forms_of
from loka_compile.passes.stages import Stages
from loka_compile.probe.profile import ProfileError
from loka_compile.spec.options import Options, OptionsError
from loka_compile.spec.plan import Plan, PlanError
from loka_compile.trial import planning


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
    device, root, training = device_of(example_inputs), compat.name_root(gm), is_training(example_inputs)
    chosen, asked = planning.read(Options.of(mode, options), device), (mode, options or {})
    online, came = learns(chosen, example_inputs), Read.of(gm)
    if reason := reason_to_leave(came.reading, example_inputs, training, online):
        return as_written(gm, example_inputs, chosen, device, asked, reason)
    chosen = planning.named_as_here(chosen, gm, example_inputs, root)
    if device == "cpu":
        compat.start_compiler()
    pipeline, written = PIPELINE.select(chosen.passes), came.reading.written_inputs()
    forms, trials = forms_of(came, example_inputs, pipeline, chosen, device, training)
    compilation = Compilation(forms, None if online else trials, written, device, pipeline, chosen, asked, online)
    if not online:
        return remember(*compilation.make(chosen, example_inputs))
    last, graph = forms.last, compilation.unplanned(example_inputs)
    sessions = Sessions(last.gm, example_inputs, chosen)
    return Calls(last.gm, last.reading, example_inputs, written, graph, compilation.make, sessions).run


def as_written(
    gm: fx.GraphModule,
    inputs: Sequence[Any],
    chosen: Options,
    device: str,
    asked: Asked,
    reason: str,
) -> Callable[..., Any]:
    """The graph, compiled by Inductor alone. `explain` says why; ahead of time, where nobody asks, a warning does."""
    if compat.is_ahead_of_time():
        warnings.warn(f"loka: left to Inductor: {reason}", stacklevel=2)
    plan = Plan(chosen.target, {}, origin=f"left to Inductor: {reason}")
    nothing = Stages(Pipeline((), (), (), (), ()), plan, device)
    graph = CompiledGraph.of(gm, inputs, chosen, nothing, asked, ())
    patches = {**compat.mode_patches(chosen.mode), **chosen.inductor}
    compiled, graph.artifacts = compat.compile_inductor(
        gm, inputs, joint=nothing.joint, post_grad=nothing.post_grad, uuid=source_fingerprint(), patches=patches
    )
    trace(graph)
    return remember(compiled, graph)


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
