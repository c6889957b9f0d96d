"""The compilation in progress: leaving and entering it, guards on it, and the graph that Dynamo made."""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, NoReturn

import torch
from torch import fx


@contextlib.contextmanager
def outside_compilation() -> Iterator[None]:
    """Leave the compilation in progress (its fake mode, tracing context and metrics), to run real tensors meanwhile.

    A backward is compiled when it first runs and writes into the metrics of the compilation around it, which take that
    from one backward only (torch._dynamo.utils._metrics_context_tls, seen with torch 2.13): so it gets metrics apart.
    """
    from torch._dynamo import utils
    from torch._dynamo.metrics_context import MetricsContext
    from torch._guards import tracing
    from torch.utils._python_dispatch import _disable_current_modes

    outer = utils.get_metrics_context()
    with tracing(None), _disable_current_modes():
        utils._metrics_context_tls.metrics_context = MetricsContext(on_exit=lambda *metrics: None)
        try:
            yield
        finally:
            utils._metrics_context_tls.metrics_context = outer


@contextlib.contextmanager
def inside_compilation(fake_mode: Any) -> Iterator[None]:
    """A compilation's tracing context around a graph whose fake inputs belong to `fake_mode`."""
    from torch._guards import TracingContext, tracing

    with tracing(TracingContext(fake_mode)):
        yield


def is_compiling_frame() -> bool:
    """Whether Dynamo compiles a frame now, and does not merely export or trace it for somebody else."""
    from torch._guards import TracingContext

    return TracingContext.try_get() is not None


def specialize(number: torch.SymFloat) -> NoReturn:
    """Let Dynamo trace the frame in progress again with the values at hand for a symbolic number's floats, guarded.

    Leaves the compilation by an exception, as AOTAutograd does for a float that it cannot make a tensor of
    (TensorifyState, seen with torch 2.13).
    """
    from torch._dynamo.exc import TensorifyScalarRestartAnalysis
    from torch._dynamo.symbolic_convert import TensorifyState

    for symbol in number.node.expr.free_symbols:
        TensorifyState.specialize(str(symbol))
    raise TensorifyScalarRestartAnalysis


def is_parameter_or_buffer(node: fx.Node) -> bool:
    """Whether an input of a Dynamo graph belongs to a module (Source.guard_source, seen with torch 2.13)."""
    source = getattr(node, "_dynamo_source", None)
    if node.op != "placeholder" or source is None:
        return node.op == "get_attr"
    return source.guard_source.is_specialized_nn_module() or source.guard_source.is_unspecialized_nn_module()


def name_of_parameter(node: fx.Node) -> str:
    """`0.weight` for an input of a Dynamo graph that is that parameter of the module that was compiled; "" for others
    (Source.name, `L['self']._modules['0']._parameters['weight']`, seen with torch 2.13)."""
    source = getattr(node, "_dynamo_source", None)
    if source is None or not isinstance(node.meta.get("example_value"), torch.nn.Parameter):
        return ""
    name = source.name if isinstance(source.name, str) else source.name()
    found = re.fullmatch(r"L\['\w+'\]((?:\._modules\['[^']+'\])*)\._parameters\['([^']+)'\]", name)
    return ".".join([*re.findall(r"'([^']+)'", found[1]), found[2]]) if found else ""


def is_whole(gm: fx.GraphModule) -> bool:
    """Whether the graph given to a backend is all of what torch.compile was given: no graph break before or after it.

    Dynamo notes a break after it on the graph; one before it is read off the Python stack: a part of a broken model is
    called by the model's own code, a whole one by torch.compile's wrapper (eval_frame.py, seen with torch 2.13).
    """
    reason = getattr(gm, "compile_subgraph_reason", None)
    if reason is None or reason.graph_break:
        return False
    frame, compiling = sys._getframe(1), False
    while frame := frame.f_back:  # type: ignore[assignment]
        file = frame.f_code.co_filename
        compiling = compiling or file.endswith("torch/_dynamo/convert_frame.py")
        if compiling and file.endswith("torch/_dynamo/eval_frame.py"):
            return True
        if compiling and "torch/_" not in file and not file.endswith("torch/nn/modules/module.py"):
            return False
    return False


def graph_break_after(gm: fx.GraphModule) -> str:
    """Where a graph given to a backend ends at a graph break, `model.py:42`, and why, where Dynamo says it in a line.

    Empty if it does not (GraphCompileReason, seen with torch 2.13).
    """
    reason = getattr(gm, "compile_subgraph_reason", None)
    if reason is None or not reason.graph_break:
        return ""
    where = [f"{PurePath(frame.filename).name}:{frame.lineno}" for frame in reason.user_stack[-1:]]
    why = reason.reason.partition("\n")[0]
    return ": ".join([*where, *([why] if " " in why else [])]) or why


def is_compiled_autograd() -> bool:
    """Whether backwards are compiled when they run, by what is set or around this call (torch._dynamo, torch 2.13)."""
    from torch._dynamo import compiled_autograd, config

    return bool(config.compiled_autograd or compiled_autograd.compiled_autograd_enabled)


def is_ahead_of_time() -> bool:
    """Whether what is compiled now is to be saved (torch.compile(...).aot_compile, which sets these, torch 2.13)."""
    from torch._functorch import config

    return bool(config.bundled_autograd_cache and config.force_autograd_cache)


def saved_tensors_are_hooked() -> bool:
    """Whether what autograd saves now goes through hooks, as in a checkpoint that the user placed around the call
    (torch._C._autograd._top_saved_tensors_default_hooks, seen with torch 2.13)."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def checkpoint_region() -> Any | None:
    """A key that a checkpoint's forward and its recomputation share; None outside of both.

    The frame that the hooks of torch.utils.checkpoint close over (_checkpoint_hook, _recomputation_hook, seen with
    torch 2.13).
    """
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if hooks is None:
        return None
    pack = inspect.unwrap(hooks[0])
    if getattr(pack, "__module__", "") != "torch.utils.checkpoint":
        return None
    held = dict(zip(pack.__code__.co_freevars, (cell.cell_contents for cell in pack.__closure__ or ()), strict=False))
    return held["target_frame_ref"]() if "target_frame_ref" in held else held.get("frame")


def calls_graphs(node: fx.Node) -> bool:
    """Whether the node of a Dynamo graph runs graphs of its own: a checkpointed function, a branch of `cond`."""
    from torch._ops import HigherOrderOperator

    return isinstance(node.target, HigherOrderOperator)


def has_effect(node: fx.Node) -> bool:
    """Whether the node calls an op that is registered to have an effect which its schema does not tell, such as a
    counter or a print (torch.library._register_effectful_op)."""
    from torch._higher_order_ops.effects import has_effects

    target = node.target
    if isinstance(target, torch._ops.OpOverloadPacket):
        return any(has_effects(getattr(target, name)) for name in target.overloads())
    return bool(has_effects(target))


def switches_functorch(node: fx.Node) -> bool:
    """Whether the node enters or leaves a transform (vmap, grad), between which tensors are wrapped
    (torch._functorch.predispatch, seen with torch 2.13)."""
    return str(getattr(node.target, "__module__", "")).startswith(("torch._functorch", "torch._C._functorch"))


def leaves_functorch(node: fx.Node) -> bool:
    """Whether the node gives a tensor that is wrapped no more: of the outermost transform, level 1."""
    unwraps = getattr(node.target, "__name__", "") in ("_remove_batch_dim", "_unwrap_for_grad")
    return switches_functorch(node) and unwraps and node.args[1] == 1


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """A copy of a graph, but for what says how its code takes and gives its values, which both have: copying that warns
    of PyTorch's own LeafSpec (torch 2.13), which is an error where all warnings are."""
    twin, codegen = fx.Graph(), graph._codegen
    graph.set_codegen(twin._codegen)
    try:
        twin = copy.deepcopy(graph)
    finally:
        graph.set_codegen(codegen)
    twin.set_codegen(codegen)
    return twin


def copy_dynamo_graph(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy that AOTAutograd still takes for Dynamo's: sources tell it which inputs are parameters. It has not what
    Dynamo notes of inputs while it traces (grapharg, torch 2.13), which refers to them weakly: see memory.py."""
    twin = fx.GraphModule(gm, copy.deepcopy(gm.graph))
    twin.meta.update(gm.meta)
    for name in ("_param_name_to_source", "compile_subgraph_reason"):
        if hasattr(gm, name):
            setattr(twin, name, getattr(gm, name))
    for old, new in zip(gm.graph.find_nodes(op="placeholder"), twin.graph.find_nodes(op="placeholder"), strict=True):
        new.meta.pop("grapharg", None)
        if hasattr(old, "_dynamo_source"):
            new._dynamo_source = old._dynamo_source
    return twin


def forward_only(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy of a Dynamo graph that leaves gradients off where it is run without: the nodes by which a region without
    them ends, that switch them on again (torch._C._set_grad_enabled, seen with torch 2.13), go."""
    twin = copy_dynamo_graph(gm)
    for node in twin.graph.find_nodes(op="call_function", target=torch._C._set_grad_enabled):
        twin.graph.erase_node(node)
    twin.recompile()
    return twin


def gradients_of_outputs(graph: fx.Graph) -> list[fx.Node]:
    """The inputs of a joint graph or a backward that are gradients of the forward's outputs, by the names that
    AOTAutograd gives them (tangents_1 and so on, the same in both, seen with torch 2.13)."""
    return [node for node in graph.find_nodes(op="placeholder") if node.name.startswith("tangents_")]


def static_inputs() -> frozenset[int]:
    """Indices of the current graph's inputs that are parameters or buffers (AOTAutograd's forward metadata)."""
    from torch._guards import TracingContext

    context = TracingContext.try_get()
    metadata = context.fw_metadata if context is not None else None
    return frozenset(metadata.static_input_indices or ()) if metadata is not None else frozenset()
