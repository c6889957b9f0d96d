"""Compiling with Inductor, or with AOTAutograd alone, with passes of our own in it."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from loka_compile.compat.before_writes import save_from_before
from loka_compile.compat.faster_draws import drawing_many
from loka_compile.compat.faster_masks import storing_masks
from loka_compile.compat.few_files import in_few_files
from loka_compile.compat.instead import instead
from loka_compile.compat.moved import loops_of, put_back
from loka_compile.compat.starting import compiler_started

GraphPass = Callable[[fx.Graph], None]
Inner = Callable[[fx.GraphModule, bool], Callable[..., Any]]


def inductor_config_keys() -> frozenset[str]:
    """Names `config_patches` accepts (torch._inductor.config.get_config_copy)."""
    from torch._inductor import config

    return frozenset(config.get_config_copy())


def mode_patches(mode: str | None, dynamic: bool | None = None) -> dict[str, Any]:
    """Inductor's settings for torch.compile's `mode` (torch._inductor.list_mode_options)."""
    from torch._inductor import list_mode_options

    return dict(list_mode_options(mode, dynamic)) if mode and mode != "default" else {}


def faster_norms() -> dict[str, Any]:
    """On a CPU variances of up to 16384 values in two passes: Welford's single one, which Inductor takes beyond 1024,
    runs at 0.5 to 0.7 of their speed there and is no more exact (torch._inductor.config.cpp, torch 2.13)."""
    name = "cpp.use_two_step_variance_threshold"
    return {name: 16384} if name in inductor_config_keys() else {}


def graph_pass(function: GraphPass, uuid: str) -> Any:
    """An Inductor pass with a cache identity (torch._inductor.custom_graph_pass.CustomGraphPass). Not for the graphs
    inside of a graph (a branch of cond, flex_attention's score_mod): nobody sees them run, and they go as written."""
    from torch._inductor.custom_graph_pass import CustomGraphPass

    class LokaPass(CustomGraphPass):
        def __call__(self, graph: fx.Graph) -> None:
            if not _inside_of_a_graph():
                function(graph)

        def uuid(self) -> str:
            return uuid

    return LokaPass()


def _joint_hooks(joint: GraphPass, uuid: str) -> dict[str, Any]:
    """Before Inductor's own passes on the joint graph, and behind them, as these make nodes anew."""
    before, behind = graph_pass(joint, f"joint-{uuid}"), graph_pass(save_from_before, "save-from-before")
    return {"joint_custom_pre_pass": before, "joint_custom_post_pass": behind}


def _inside_of_a_graph() -> bool:
    """Whether Inductor is at a graph inside of another one: what runs its passes calls itself for those, or AOTAutograd
    calls it (_recursive_joint_graph_passes, _recursive_post_grad_passes, run_joint_graph_passes_on_hops, in 2.13)."""
    depth, frame = 0, sys._getframe(1)
    while frame := frame.f_back:  # type: ignore[assignment]
        name = frame.f_code.co_name
        depth += name in ("_recursive_joint_graph_passes", "_recursive_post_grad_passes")
        if name == "run_joint_graph_passes_on_hops" or depth > 1:
            return True
    return False


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
        with _artifacts_into(artifacts), _loops_left_whole(), drawing_many(), storing_masks(), in_few_files():
            return compile_fx_inner(*args, **kwargs)

    hooks = {**_joint_hooks(joint, uuid), "post_grad_custom_pre_pass": graph_pass(post_grad, f"post-{uuid}")}
    compiler_started()
    with _artifacts_into(artifacts), _donating_nothing(), _tracing_apart(), in_few_files():
        compiled = compile_fx(gm, inputs, inner_compile=inner, config_patches={**patches, **hooks})
    return compiled, artifacts


def compile_together(
    functions: Sequence[Callable[..., Sequence[Tensor]]], inputs: Sequence[Sequence[Tensor]]
) -> Callable[[int, Sequence[Tensor]], Callable[[], list[Tensor]]]:
    """Functions that share nothing, through Inductor without Dynamo in one graph: on a CPU one C++ file, whose loops
    stay apart. Of each all tensors have as many rows, or one; the code is for any number of them. Values do not matter.

    Returns `ready(index, inputs)`, which returns what runs that one of them on these inputs, and the others on two rows
    each, and returns its outputs. All write into memory that is there.
    """
    from torch._guards import TracingContext, tracing
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    outputs = [_outputs_of(function, own) for function, own in zip(functions, inputs, strict=True)]
    both = [[*outs, *own] for outs, own in zip(outputs, inputs, strict=True)]
    mode, counts = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()), set[int]()  # constants

    def fakes_of(name: str, tensors: Sequence[Tensor]) -> list[Any]:
        rows = max(len(x) for x in tensors)
        while rows in counts:  # the same number would be the same symbol
            rows += 1
        counts.add(rows)
        return [_fake_of_any_rows(mode, f"{name}_{i}", x, rows) for i, x in enumerate(tensors)]

    def into(*args: Tensor) -> tuple[()]:
        rest = iter(args)
        for function, own, outs in zip(functions, inputs, outputs, strict=True):
            memory, given = [next(rest) for _ in outs], [next(rest) for _ in own]
            for out, made in zip(memory, function(*given), strict=True):
                out.copy_(made)
        return ()

    compiler_started()
    with torch.no_grad():
        fakes = [x for i, each in enumerate(both) for x in fakes_of(f"x{i}", each)]
        gm = make_fx(into, decomposition_table=decomposition_table(), _allow_non_fake_inputs=True)(*fakes)
        with tracing(TracingContext(mode)):  # every write is the last use of its memory, as AOTAutograd would have it
            compiled = compile_fx_inner(gm, fakes, is_inference=True)
    few = [[x[:2].clone() for x in each] for each in both]

    def ready(index: int, own: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
        made = [out.new_empty((len(own[0]), *out.shape[1:]) if len(out) > 1 else out.shape) for out in outputs[index]]
        args = [x for i, each in enumerate(few) for x in ((*made, *own) if i == index else each)]

        def run() -> list[Tensor]:
            compiled(list(args))  # the callee empties the list
            return made

        return run

    return ready


def _outputs_of(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Memory like a function's outputs, without running it."""
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode() as mode:
        fakes = function(*map(mode.from_tensor, inputs))
    return [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device) for x in fakes]


def _fake_of_any_rows(mode: Any, name: str, x: Tensor, rows: int) -> Any:
    """A fake tensor of so many rows, their number a symbol; as it is if there is one row."""
    from torch._dynamo.source import ConstantSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext

    if len(x) > 1:
        x = torch.empty_strided((rows, *x.shape[1:]), x.stride(), dtype=x.dtype, device=x.device)
    sizes = [DimDynamic.DUCK if d == 0 and len(x) > 1 else DimDynamic.STATIC for d in range(x.dim())]
    context = StatelessSymbolicContext(sizes)
    return mode.from_tensor(x, source=ConstantSource(name), symbolic_context=context)


@contextlib.contextmanager
def _artifacts_into(artifacts: list[Any]) -> Iterator[None]:
    """Collect each CompiledFxGraph made or loaded meanwhile: post_compile runs for both (output_code.py)."""
    from torch._inductor.output_code import CompiledFxGraph

    original = CompiledFxGraph.post_compile

    def post_compile(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not any(self is seen for seen in artifacts):
            artifacts.append(self)
        return original(self, *args, **kwargs)

    with instead(CompiledFxGraph, "post_compile", post_compile):
        yield


@contextlib.contextmanager
def _loops_left_whole() -> Iterator[None]:
    """Where the C++ generator asserts that fused loops can all be split alike, and they cannot, leave them.

    CppScheduling.try_loop_split, an optimisation, gives its nodes back as they are wherever else it has nothing to do.
    A gradient quantized in blocks along both its axes trips over it (torch 2.13).
    """
    from torch._inductor.codegen.cpp import CppScheduling

    original = CppScheduling.try_loop_split

    def try_loop_split(self: Any, nodes: list[Any]) -> list[Any]:
        before = [loops_of(node) for node in nodes]
        try:
            return original(self, nodes)
        except AssertionError:
            for node, loops in zip(nodes, before, strict=True):
                put_back(node, loops)
            return nodes

    with instead(CppScheduling, "try_loop_split", try_loop_split):
        yield


def _donating_nothing() -> contextlib.AbstractContextManager[None]:
    """A backward does not write into what was saved for it, so it may run twice, as `retain_graph` has it.

    AOTAutograd knows who retains only where the caller's first backward is compiled when it runs, and refuses it for
    all other code that writes so (torch 2.13). Ours is compiled before, to be measured or raced.
    """
    from torch._functorch._aot_autograd import graph_compile

    return instead(graph_compile, "collect_bw_donated_buffer_idxs", lambda *_: [])


@contextlib.contextmanager
def _tracing_apart() -> Iterator[None]:
    """A tracing context of its own for one of several compilations of a frame, the rest of it shared.

    AOTAutograd leaves a graph's metadata in it, and a backward that is compiled when it first runs looks there for the
    saved tensors it may write into (TracingContext.fw_metadata, bw_donated_idxs, seen with torch 2.13). Those of
    another graph made it write into parameters. Whoever asked for the compilation (Dynamo's DDP optimizer) finds the
    last one's metadata and output strides where it looks for them.
    """
    from torch._guards import TracingContext, tracing

    context = TracingContext.try_get()
    if context is None:
        yield
        return
    apart = copy.copy(context)
    if context.output_strides is not None:
        apart.output_strides = []
    with tracing(apart):
        yield
    context.fw_metadata = apart.fw_metadata
    if context.output_strides is not None and apart.output_strides:
        context.output_strides[:] = apart.output_strides


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

        setattr(boxed, "_boxed_call", True)  # noqa: B010  # AOTAutograd's mark for that convention
        return boxed

    hooks = {**_joint_hooks(joint, "capture"), "force_disable_caches": True}
    settings = functorch_config.patch(enable_autograd_cache=False, force_non_lazy_backward_lowering=True)
    with settings, _donating_nothing(), _tracing_apart():
        return compile_fx(gm, inputs, inner_compile=inner_compile, config_patches={**patches, **hooks})


def decomposition_table() -> dict[Any, Any]:
    """Inductor's decompositions: what a graph that reaches its post-grad passes is written in."""
    from torch._inductor.decomposition import select_decomp_table

    return dict(select_decomp_table())
