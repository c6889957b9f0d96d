"""The records of compiled graphs, and how to find the graphs of a `torch.compile` result again."""

from __future__ import annotations

import inspect
import itertools
import operator
import re
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from loka_compile import compat
from loka_compile.passes.dynamo import Change
from loka_compile.passes.stages import Stages
from loka_compile.spec.options import Options

SHOWN = 4
"""Inputs that are named before they are counted."""

_orders = itertools.count()


@dataclass(eq=False)
class CompiledGraph:
    """One graph that loka compiled: all that is needed to run the passes on it again, and what Inductor made of it.

    module: the Dynamo graph, before AOTAutograd. fake_inputs: its inputs as fake tensors and symbols. asked: the
    `mode` and `options` of the user's torch.compile call. region: what the code was compiled inside of, such as
    autocast. parameters: those that the calls so far came with. artifacts: Inductor's outputs, one for each generated
    graph; that of a backward arrives when the backward first runs. status: returns what an online session says of
    itself; told: the same as data. changes: what the passes on the Dynamo graph did, before it became `module`. said:
    what else `explain` tells of how the graph was compiled. seconds: to settle its plan, race it and compile it.
    """

    module: fx.GraphModule
    fake_inputs: list[Any]
    options: Options
    stages: Stages
    asked: tuple[str | None, dict[str, Any]]
    region: compat.Region
    parameters: dict[int, compat.Memory]
    artifacts: list[Any] = field(default_factory=list)
    status: Callable[[], str] | None = None
    told: Callable[[], dict[str, Any]] | None = None
    changes: tuple[Change, ...] = ()
    said: tuple[str, ...] = ()
    seconds: float = 0.0
    order: int = field(default_factory=lambda: next(_orders))
    _place: int = -1
    _latest: int = 0

    @classmethod
    def of(
        cls,
        gm: fx.GraphModule,
        inputs: Sequence[Any],
        options: Options,
        stages: Stages,
        asked: Any,
        changes: tuple[Change, ...] = (),
    ) -> CompiledGraph:
        """Copies the graph: call it before the compilation, which changes the graph."""
        module = compat.copy_dynamo_graph(gm)
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        fake_inputs = [_example(node, value) for node, value in zip(placeholders, inputs, strict=True)]
        place = next((i for i, value in enumerate(inputs) if isinstance(value, nn.Parameter)), -1)
        region = compat.region_here()
        return cls(module, fake_inputs, options, stages, asked, region, _by_id(inputs), changes=changes, _place=place)

    def belonging_to(
        self,
        parameters: Iterable[torch.Tensor],
        status: Callable[[], str],
        told: Callable[[], dict[str, Any]] | None = None,
    ) -> CompiledGraph:
        """The same code for another owner: it runs with these parameters, and their session has this status."""
        return replace(self, parameters=_by_id(parameters), status=status, told=told, order=next(_orders))

    @property
    def inputs(self) -> str:
        """Names and shapes of what it is called with beside its parameters and buffers: `x (64, 13)`."""
        placeholders = self.module.graph.find_nodes(op="placeholder")
        data = [
            f"{_argument(node)} {tuple(value.shape)}"
            for node, value in zip(placeholders, self.fake_inputs, strict=True)
            if isinstance(value, torch.Tensor) and not compat.is_parameter_or_buffer(node)
        ]
        return ", ".join([*data[:SHOWN], *([f"{len(data) - SHOWN} more"] if len(data) > SHOWN else [])]) or "no tensors"

    @property
    def source_code(self) -> str:
        """Everything Inductor generated for this graph."""
        return "\n".join(artifact.source_code for artifact in self.artifacts)

    @property
    def has_backward(self) -> bool:
        """Whether the backward has been compiled. Under compiled autograd that happens when it first runs."""
        return any((artifact.fx_kwargs or {}).get("is_backward") for artifact in self.artifacts)

    def shares_parameters(self, original: Any) -> bool:
        known = self.parameters
        own = compat.parameters_at_calls(original) if isinstance(original, nn.Module) else ()
        return any(id(each) in known and compat.is_memory_of(known[id(each)], each) for each in own)

    def is_of_all(self, original: Any) -> bool:
        """Made for the module's parameters, before they were given other memory (`.data`) or swapped."""
        own = compat.parameters_at_calls(original) if isinstance(original, nn.Module) else ()
        return bool(self.parameters) and self.parameters.keys() <= {id(each) for each in own}

    def called(self, args: Sequence[Any]) -> None:
        """Note the parameters of a call: another instance has others, as has a model whose weights were assigned."""
        if self._place < 0:
            return
        latest = id(args[self._place])
        known = self.parameters.get(latest)
        if self._latest != latest or (known is not None and known() is None):
            self._latest = latest
            alive = {key: known for key, known in self.parameters.items() if known() is not None}
            self.parameters = {**alive, **_by_id(args)}

    def shares_names(self, original: Any) -> bool:
        """Whether a module's parameters have the names and sizes of this graph's.

        It finds a module of torch's own whose parameters were just replaced.
        """
        names = {compat.name_of_parameter(node): node for node in self.module.graph.find_nodes(op="placeholder")}
        shapes = {name: node.meta["example_value"].shape for name, node in names.items() if name}
        own = dict(original.named_parameters()) if isinstance(original, nn.Module) else {}
        return bool(shapes) and all(name in own and own[name].shape == shape for name, shape in shapes.items())

    def shares_lines(self, functions: Iterable[Any]) -> bool:
        """Whether the graph was traced from lines of one of the functions."""
        mine = self._lines()
        return any(mine & _lines_of(function) for function in functions)

    def _lines(self) -> set[tuple[str, int]]:
        traces = (node.meta.get("stack_trace") or "" for node in self.module.graph.nodes)
        return {(file, int(line)) for t in traces for file, line in re.findall(r'File "([^"]+)", line (\d+)', t)}


def _example(node: fx.Node, value: Any) -> Any:
    """The fake tensor or symbol of one input. Compiled autograd hands over its inputs as a list of real tensors, which
    the call empties: the fakes are those of the nodes that take the tensors out of the list."""
    example = node.meta.get("example_value", value)
    if not isinstance(example, list):
        return example
    taken = {user.args[1]: user.meta.get("example_value") for user in node.users if user.target is operator.getitem}
    return [taken.get(place) for place in range(len(example))]


def _argument(node: fx.Node) -> str:
    """`x` for the input that Dynamo calls `L_x_`."""
    return re.sub(r"^[lL]_(.*)_$", r"\1", node.name)


def _by_id(values: Iterable[Any]) -> dict[int, compat.Memory]:
    """The parameters among the values, by id. (A WeakSet would compare tensors by value.)"""
    return {id(value): compat.memory_of(value) for value in values if isinstance(value, nn.Parameter)}


def _lines_of(function: Any) -> set[tuple[str, int]]:
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        return set()
    lines = [line for _, _, line in code.co_lines() if line is not None]
    return {(code.co_filename, line) for line in range(min(lines), max(lines) + 1)}


def _forward_of(original: Any) -> list[Any]:
    return [type(original).forward if isinstance(original, nn.Module) else original]


def _named_in(original: Any) -> list[nn.Module]:
    """The modules that a function closes over or reads as globals. A module has none: its own are found otherwise."""
    function = inspect.unwrap(original)
    if isinstance(original, nn.Module) or not inspect.isfunction(function):
        return []
    try:
        seen = inspect.getclosurevars(function)
    except ValueError:  # what it closes over is not there yet
        return []
    return [each for each in (*seen.nonlocals.values(), *seen.globals.values()) if isinstance(each, nn.Module)]


def _forwards_inside(original: Any) -> list[Any]:
    """The forward functions of the modules inside a module. Those of torch's own modules are left out, as every model
    has them."""
    functions = {type(each).forward for each in original.modules()} if isinstance(original, nn.Module) else set()
    return [function for function in functions if not function.__module__.startswith("torch.")]


_live: weakref.WeakSet[CompiledGraph] = weakref.WeakSet()  # each lives as long as the compiled code that refers to it


def remember(compiled: Callable[..., Any], graph: CompiledGraph) -> Callable[..., Any]:
    """Tie the graph to its compiled callable, so that `graphs_of` finds it as long as the callable lives."""

    def run(*args: Any) -> Any:
        graph.called(args)
        return compiled(*args)

    if compat.is_ahead_of_time():
        from loka_compile.inspect.ahead import AheadOfTime  # it imports Dynamo, which reading a plan has no use for

        run = AheadOfTime(compiled)
    run.loka_graph = graph  # type: ignore[attr-defined]
    show(graph)
    return run


def show(graph: CompiledGraph) -> None:
    """Let `graphs_of` find the graph as long as it lives. Whoever runs its code holds it."""
    _live.add(graph)


def forget(graph: CompiledGraph) -> None:
    """Let `graphs_of` not find the graph any more: another one has taken its place."""
    _live.discard(graph)


def forget_all() -> None:
    """Forget every graph, as torch._dynamo.reset() drops all compiled code."""
    _live.clear()


def graphs_of(compiled: Any) -> list[CompiledGraph]:
    """The graphs compiled so far for a `torch.compile` result, oldest first.

    Raises ValueError if `compiled` was not made by torch.compile with loka, or has not run yet.
    """
    asked, backend = compat.user_options(compiled), compat.backend_name(compiled)
    another = backend.isidentifier() and backend != "loka"  # a function's is no name, and may call loka
    if asked is None or another:
        came = f'that of backend="{backend}"' if another else type(compiled).__name__
        raise ValueError(f'expected what torch.compile(..., backend="loka") returns, got {came}')
    original = compat.original_of(compiled)
    candidates = [graph for graph in _live if graph.asked == asked]
    found = [graph for graph in candidates if graph.shares_parameters(original)]
    found = found or [graph for graph in candidates if graph.is_of_all(original)]
    # code compiled for a twin, or for parameters that were replaced or stand for its own
    found = found or [graph for graph in candidates if graph.shares_lines(_forward_of(original))]
    for module in _named_in(original):  # called behind a graph break, DistributedDataParallel's, say
        if not any(graph.shares_parameters(module) for graph in found):
            found += [graph for graph in candidates if graph.shares_parameters(module)]
    found = found or [graph for graph in candidates if graph.shares_names(original)]
    found = found or [graph for graph in candidates if graph.shares_lines(_forwards_inside(original))]
    if not found:
        raise ValueError(
            "nothing has been compiled yet: call the compiled model once, then ask again. If it was called, Dynamo "
            "left it to Python: TORCH_LOGS=graph_breaks says where and why"
        )
    return sorted(found, key=lambda graph: graph.order)
