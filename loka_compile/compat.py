"""Every private PyTorch API that loka uses, behind names of our own. Seen working with torch 2.13.0.

Nothing else in the project imports from `torch._inductor`, `torch._dynamo`, `torch._functorch`, `torch._guards` or
`torch._subclasses` (tests/test_layers.py holds this), so a new torch version breaks here or nowhere. Heavy modules
are imported inside the functions: importing this one costs nothing.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NoReturn

import sympy
import torch
from torch import fx

GraphPass = Callable[[fx.Graph], None]
Inner = Callable[[fx.GraphModule, bool], Callable[..., Any]]


# ---------------------------------------------------------------- compiling


def inductor_config_keys() -> frozenset[str]:
    """Names `config_patches` accepts (torch._inductor.config.get_config_copy)."""
    from torch._inductor import config

    return frozenset(config.get_config_copy())


def mode_patches(mode: str | None, dynamic: bool | None = None) -> dict[str, Any]:
    """Inductor's settings for torch.compile's `mode` (torch._inductor.list_mode_options)."""
    from torch._inductor import list_mode_options

    return dict(list_mode_options(mode, dynamic)) if mode and mode != "default" else {}


def graph_pass(function: GraphPass, uuid: str) -> Any:
    """An Inductor pass with a cache identity (torch._inductor.custom_graph_pass.CustomGraphPass)."""
    from torch._inductor.custom_graph_pass import CustomGraphPass

    class LokaPass(CustomGraphPass):
        def __call__(self, graph: fx.Graph) -> None:
            function(graph)

        def uuid(self) -> str:
            return uuid

    return LokaPass()


def compile_inductor(
    gm: fx.GraphModule,
    inputs: Sequence[Any],
    *,
    joint: GraphPass,
    post_grad: GraphPass,
    uuid: str,
    patches: Mapping[str, Any],
) -> tuple[Callable[..., Any], list[Any]]:
    """AOTAutograd and Inductor with our passes in their two hooks.

    Returns the compiled callable and the list its artifacts arrive in (CompiledFxGraph: one a forward, inference
    or backward graph, also those that come from a cache or are compiled later).
    """
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    artifacts: list[Any] = []

    def inner(*args: Any, **kwargs: Any) -> Any:  # the backward may be compiled after compile_fx has returned
        with _artifacts_into(artifacts), _loops_left_whole():
            return compile_fx_inner(*args, **kwargs)

    hooks = {
        "joint_custom_pre_pass": graph_pass(joint, f"joint-{uuid}"),
        "post_grad_custom_pre_pass": graph_pass(post_grad, f"post-{uuid}"),
    }
    with _artifacts_into(artifacts):
        compiled = compile_fx(gm, inputs, inner_compile=inner, config_patches={**patches, **hooks})
    return compiled, artifacts


def compile_function(function: Callable[..., Any], inputs: Sequence[Any]) -> Callable[..., Any]:
    """A torch function through Inductor for these inputs' shapes, without Dynamo (torch._inductor.compile)."""
    from torch._inductor import compile as inductor_compile
    from torch.fx.experimental.proxy_tensor import make_fx

    return inductor_compile(make_fx(function)(*inputs), list(inputs))


@contextlib.contextmanager
def _artifacts_into(artifacts: list[Any]) -> Iterator[None]:
    """Collect each CompiledFxGraph made or loaded meanwhile: post_compile runs for both (output_code.py)."""
    from torch._inductor.output_code import CompiledFxGraph

    original = CompiledFxGraph.post_compile

    def post_compile(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not any(self is seen for seen in artifacts):
            artifacts.append(self)
        return original(self, *args, **kwargs)

    with _instead(CompiledFxGraph, "post_compile", post_compile):
        yield


@contextlib.contextmanager
def _loops_left_whole() -> Iterator[None]:
    """Where torch 2.13's C++ generator asserts that fused loops can all be split alike, and they cannot, leave them.

    CppScheduling.try_loop_split, an optimisation, gives its nodes back as they are wherever else it has nothing to do.
    A gradient quantized in blocks along both its axes trips over it.
    """
    from torch._inductor.codegen.cpp import CppScheduling

    original = CppScheduling.try_loop_split

    def try_loop_split(self: Any, nodes: list[Any]) -> list[Any]:
        states = [node.snapshot_loop_state() for node in nodes]
        try:
            return original(self, nodes)
        except AssertionError:
            for node, state in zip(nodes, states, strict=True):
                node.restore_loop_state(state)
            return nodes

    with _instead(CppScheduling, "try_loop_split", try_loop_split):
        yield


@contextlib.contextmanager
def _instead(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    """An attribute replaced for a while."""
    original = getattr(owner, name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, original)


def capture(
    gm: fx.GraphModule, inputs: Sequence[Any], *, joint: GraphPass, inner: Inner, patches: Mapping[str, Any] = {}
) -> Callable[..., Any]:
    """AOTAutograd and Inductor's joint passes without code generation.

    `inner(graph_module, is_backward)` receives the inference graph, or the forward and the backward graph after
    partitioning, and returns what runs in its place: a callable on a flat argument list. If that has a `boxed_run`, it
    is given the list itself, to empty: what a backward has no use for any more is then freed on the way.
    """
    from torch._functorch import config as functorch_config
    from torch._inductor.compile_fx import compile_fx

    def inner_compile(graph: fx.GraphModule, _: Any, **kwargs: Any) -> Any:
        run = inner(graph, bool(kwargs.get("is_backward")))

        def boxed(args: list[Any]) -> Any:  # the boxed calling convention: the callee owns the arguments
            if hasattr(run, "boxed_run"):
                return run.boxed_run(args)
            flat = list(args)
            args.clear()
            return run(*flat)

        boxed._boxed_call = True  # AOTAutograd's mark for that convention
        return boxed

    hooks = {"joint_custom_pre_pass": graph_pass(joint, "capture"), "force_disable_caches": True}
    with functorch_config.patch(enable_autograd_cache=False, force_non_lazy_backward_lowering=True):
        return compile_fx(gm, inputs, inner_compile=inner_compile, config_patches={**patches, **hooks})


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


def can_guard() -> bool:
    """Whether a Dynamo frame is being compiled, so that `guard_on` has something to guard."""
    from torch._guards import TracingContext

    return TracingContext.try_get() is not None


def guard_on(holds: Callable[[], bool], reason: str) -> None:
    """Let Dynamo compile the frame in progress again once `holds()` is false; TORCH_LOGS=recompiles prints `reason`.

    A lambda guard at the root, as shape guards are (torch._dynamo.guards.GuardBuilder, seen with torch 2.13). It runs
    at every call of the frame.
    """
    from torch._dynamo.source import GlobalStateSource
    from torch._guards import Guard, TracingContext

    def create(builder: Any, guard: Any) -> None:
        builder.guard_manager.root.add_lambda_guard(lambda _: holds(), [reason], None)

    TracingContext.get().guards_context.dynamo_guards.add(Guard(GlobalStateSource(), create))


# ---------------------------------------------------------------- graphs


def is_parameter_or_buffer(node: fx.Node) -> bool:
    """Whether an input of a Dynamo graph belongs to a module (Source.guard_source, seen with torch 2.13)."""
    source = getattr(node, "_dynamo_source", None)
    if node.op != "placeholder" or source is None:
        return node.op == "get_attr"
    return source.guard_source.is_specialized_nn_module() or source.guard_source.is_unspecialized_nn_module()


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


def calls_graphs(node: fx.Node) -> bool:
    """Whether the node of a Dynamo graph runs graphs of its own: a checkpointed function, a branch of `cond`."""
    from torch._ops import HigherOrderOperator

    return isinstance(node.target, HigherOrderOperator)


def copy_dynamo_graph(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy that AOTAutograd still takes for Dynamo's: sources tell it which inputs are parameters."""
    twin = fx.GraphModule(gm, copy.deepcopy(gm.graph))
    twin.meta.update(gm.meta)
    for name in ("_param_name_to_source", "compile_subgraph_reason"):
        if hasattr(gm, name):
            setattr(twin, name, getattr(gm, name))
    for old, new in zip(gm.graph.find_nodes(op="placeholder"), twin.graph.find_nodes(op="placeholder"), strict=True):
        if hasattr(old, "_dynamo_source"):
            new._dynamo_source = old._dynamo_source
    return twin


def decomposition_table() -> dict[Any, Any]:
    """Inductor's decompositions: what a graph that reaches its post-grad passes is written in."""
    from torch._inductor.decomposition import select_decomp_table

    return dict(select_decomp_table())


def fake_mode_of(values: Sequence[Any]) -> Any | None:
    """The FakeTensorMode the values belong to, if any."""
    from torch._guards import detect_fake_mode

    return detect_fake_mode(list(values))


@contextlib.contextmanager
def tracing_fakes(values: Sequence[Any]) -> Iterator[None]:
    """Around make_fx on these fake values: composite operators need the Python dispatcher for symbolic sizes."""
    from torch._dispatch.python import enable_python_dispatcher

    with fake_mode_of(values) or contextlib.nullcontext(), enable_python_dispatcher():
        yield


@contextlib.contextmanager
def running_fakes(values: Sequence[Any]) -> Iterator[None]:
    """Around torch functions on fake values of a Dynamo graph: under the mode they were made in, which is no longer
    that of the compilation; composite operators need the Python dispatcher for symbolic sizes."""
    from torch._dispatch.python import enable_python_dispatcher

    fakes = [value for value in values if is_fake(value)]
    with fakes[0].fake_mode if fakes else contextlib.nullcontext(), enable_python_dispatcher():
        yield


def is_fake(value: Any) -> bool:
    from torch._subclasses import FakeTensor

    return isinstance(value, FakeTensor)


def static_inputs() -> frozenset[int]:
    """Indices of the current graph's inputs that are parameters or buffers (AOTAutograd's forward metadata)."""
    from torch._guards import TracingContext

    context = TracingContext.try_get()
    metadata = context.fw_metadata if context is not None else None
    return frozenset(metadata.static_input_indices or ()) if metadata is not None else frozenset()


def guard_free(value: Any) -> bool:
    """Whether a possibly symbolic condition is known to be true, without adding a guard."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return bool(statically_known_true(value))


def concrete(size: Any) -> Any:
    """The value a symbolic size has for the inputs at hand, without adding a guard; anything else as it is."""
    return int(size.node.hint) if isinstance(size, torch.SymInt) else size


def hint_of(size: sympy.Expr, inputs: Sequence[Any]) -> int:
    """The value of an expression in the symbols of a graph's inputs, for the inputs at hand, without adding a guard
    (ShapeEnv.backed_var_to_val, seen with torch 2.13)."""
    return int(size if size.is_number else size.xreplace(_shape_env(inputs).backed_var_to_val))


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


def guard_sizes(inputs: Sequence[Any], *conditions: sympy.Basic) -> None:
    """Let Dynamo compile the graph of these inputs again where one of the conditions, true here, no longer holds.

    ShapeEnv.evaluate_expr (seen with torch 2.13), as Inductor's own guards on sizes.
    """
    for condition in conditions:
        if condition.free_symbols:
            _shape_env(inputs).evaluate_expr(condition)


def _shape_env(inputs: Sequence[Any]) -> Any:
    sizes = (size for value in inputs for size in (value.shape if isinstance(value, torch.Tensor) else (value,)))
    return next(size.node.shape_env for size in sizes if isinstance(size, torch.SymInt))


# ---------------------------------------------------------------- torch.compile's objects


def user_options(compiled: Any) -> tuple[str | None, dict[str, Any]] | None:
    """The `mode` and `options` a torch.compile result was made with; None if it is no torch.compile result."""
    wrapper = _backend_of(compiled)
    if wrapper is None or not hasattr(wrapper, "kwargs"):
        return None
    return wrapper.kwargs.get("mode"), dict(wrapper.kwargs.get("options") or {})


def _backend_of(compiled: Any) -> Any | None:
    """Follow a compiled module or function to torch's _TorchCompileWrapper, by `_torchdynamo_orig_backend`."""
    context = getattr(compiled, "dynamo_ctx", None)
    callback = getattr(context, "callback", None)
    if callback is None:
        function = getattr(compiled, "_compiled_call_impl", None) or compiled  # nn.Module.compile
        cells = getattr(function, "__closure__", None) or ()
        callback = next((c.cell_contents for c in cells if hasattr(c.cell_contents, "_torchdynamo_orig_backend")), None)
    while callback is not None and hasattr(callback, "_torchdynamo_orig_backend"):
        callback = callback._torchdynamo_orig_backend
    return callback


def original_of(compiled: Any) -> Any:
    """The module or function that torch.compile wrapped; the module of a module's method."""
    module = getattr(compiled, "_orig_mod", None)
    original = module if module is not None else getattr(compiled, "_torchdynamo_orig_callable", compiled)
    owner = getattr(inspect.unwrap(original), "__self__", None)
    return owner if isinstance(owner, torch.nn.Module) else original


def is_compiled(model: torch.nn.Module) -> bool:
    """Whether a module is a torch.compile result, or was compiled in place by its `compile` method."""
    from torch._dynamo import OptimizedModule

    return isinstance(model, OptimizedModule) or model._compiled_call_impl is not None


def compile_calls(
    model: torch.nn.Module, wrap: Callable[[Callable[..., Any]], Callable[..., Any]], **options: Any
) -> Callable[[], None]:
    """Send a module's calls through `wrap(torch.compile(its call, **options))`, until the function returned is called.

    Dynamo never compiles the frames of torch's own modules: as a root they need a frame around them, in which they
    have the name that torch.compile gives them (torch._dynamo.external_utils.wrap_inline).
    """
    from torch._dynamo.trace_rules import check

    def around(fn: torch.nn.Module) -> Callable[..., Any]:
        return lambda *args, **kwargs: fn._call_impl(*args, **kwargs)

    if isinstance(model.forward, types.MethodType) and check(model.forward):
        compiled = torch.compile(around(model), **options)
    else:
        compiled = torch.compile(model._call_impl, **options)
    model._compiled_call_impl = wrap(compiled)  # type: ignore[assignment]
    return lambda: model.__dict__.pop("_compiled_call_impl", None)
