"""What is kept of each compiled graph, and finding the graphs of a `torch.compile` result again."""

from __future__ import annotations

import inspect
import itertools
import re
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from loka_compile import compat
from loka_compile.options import Options
from loka_compile.passes.dynamo import Change
from loka_compile.passes.stages import Stages

_orders = itertools.count()


@dataclass(eq=False)
class CompiledGraph:
    """One graph that loka compiled: enough to compile it again without code generation, and what came out.

    module: the Dynamo graph, before AOTAutograd. fake_inputs: its inputs as fake tensors and symbols. asked: the
    `mode` and `options` of the user's torch.compile call. training: gradients were recorded. artifacts: Inductor's
    outputs, one a generated graph; a backward arrives when it is first compiled. status: what an online session has
    to say of itself. changes: what the passes on the Dynamo graph did, before it became
    `module`.
    """

    module: fx.GraphModule
    fake_inputs: list[Any]
    options: Options
    stages: Stages
    asked: tuple[str | None, dict[str, Any]]
    training: bool
    parameters: weakref.WeakSet[torch.Tensor]
    artifacts: list[Any] = field(default_factory=list)
    status: Callable[[], str] | None = None
    changes: tuple[Change, ...] = ()
    order: int = field(default_factory=lambda: next(_orders))

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
        """Taken before compilation, which owns and changes the graph."""
        module = compat.copy_dynamo_graph(gm)
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        fake_inputs = [node.meta.get("example_value", value) for node, value in zip(placeholders, inputs, strict=True)]
        parameters = weakref.WeakSet(value for value in inputs if isinstance(value, nn.Parameter))
        training = torch.is_grad_enabled()
        return cls(module, fake_inputs, options, stages, asked, training, parameters, changes=changes)

    def belonging_to(self, parameters: Iterable[torch.Tensor], status: Callable[[], str]) -> CompiledGraph:
        """The same code, as it runs for these."""
        own = weakref.WeakSet(parameters)
        return replace(self, parameters=own, status=status, order=next(_orders))

    @property
    def source_code(self) -> str:
        """Everything Inductor generated for this graph."""
        return "\n".join(artifact.source_code for artifact in self.artifacts)

    @property
    def has_backward(self) -> bool:
        """The backward has been compiled; under compiled autograd, say, that is when it first runs."""
        return any((artifact.fx_kwargs or {}).get("is_backward") for artifact in self.artifacts)

    def shares_parameters(self, original: Any) -> bool:
        mine = {id(parameter) for parameter in self.parameters}
        return isinstance(original, nn.Module) and any(id(parameter) in mine for parameter in original.parameters())

    def shares_lines(self, original: Any) -> bool:
        """Came from the same lines of Python: a function, or another instance of a module's class."""
        return bool(self._lines() & _lines_of(original))

    def _lines(self) -> set[tuple[str, int]]:
        traces = (node.meta.get("stack_trace") or "" for node in self.module.graph.nodes)
        return {(file, int(line)) for t in traces for file, line in re.findall(r'File "([^"]+)", line (\d+)', t)}


def _lines_of(original: Any) -> set[tuple[str, int]]:
    function = type(original).forward if isinstance(original, nn.Module) else inspect.unwrap(original)
    code = getattr(function, "__code__", None)
    if code is None:
        return set()
    lines = [line for _, _, line in code.co_lines() if line is not None]
    return {(code.co_filename, line) for line in range(min(lines), max(lines) + 1)}


_live: weakref.WeakSet[CompiledGraph] = weakref.WeakSet()  # each lives as long as the compiled code that refers to it


def remember(compiled: Callable[..., Any], graph: CompiledGraph) -> Callable[..., Any]:
    """Tie the graph to its compiled callable, and make it findable while that lives."""

    def run(*args: Any) -> Any:
        return compiled(*args)

    run.loka_graph = graph  # type: ignore[attr-defined]
    show(graph)
    return run


def show(graph: CompiledGraph) -> None:
    """Make it findable while it lives: whoever runs its code holds it."""
    _live.add(graph)


def forget(graph: CompiledGraph) -> None:
    """Another graph has taken its place."""
    _live.discard(graph)


def forget_all() -> None:
    """torch._dynamo.reset(): what was compiled is gone, and so is what was known of it."""
    _live.clear()


def graphs_of(compiled: Any) -> list[CompiledGraph]:
    """The graphs compiled so far for a `torch.compile` result, oldest first.

    Raises ValueError if `compiled` was not made by torch.compile with loka, or has not run yet.
    """
    asked = compat.user_options(compiled)
    if asked is None:
        raise ValueError(f'expected what torch.compile(..., backend="loka") returns, got {type(compiled).__name__}')
    original = compat.original_of(compiled)
    candidates = [graph for graph in _live if graph.asked == asked]
    found = [graph for graph in candidates if graph.shares_parameters(original)]
    found = found or [graph for graph in candidates if graph.shares_lines(original)]  # code compiled for a twin
    if not found:
        raise ValueError(
            "nothing has been compiled yet: call the compiled model once, then ask again. If it was called, Dynamo "
            "left it to Python: TORCH_LOGS=graph_breaks says where and why"
        )
    return sorted(found, key=lambda graph: graph.order)
