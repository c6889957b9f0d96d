"""Records: what happened while a graph was compiled, told again.

A record is rebuilt by running the pipeline once more, without code generation, on what a CompiledGraph keeps. So it
is complete on a warm cache too, where no pass ran, and it is no side effect of a pass.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from loka_compile import compat
from loka_compile.dispatch.plan import Plan
from loka_compile.graph.sites import annotate
from loka_compile.inspect.compiled import CompiledGraph, graphs_of
from loka_compile.passes import PassResult, Reject, Rewrite


@dataclass(frozen=True)
class Stage:
    """One pass on one graph (`inference`, `joint`, `forward` or `backward`): the code before and after."""

    name: str
    graph: str
    before: str
    after: str
    rewrites: tuple[Rewrite, ...]
    rejects: tuple[Reject, ...]

    @property
    def diff(self) -> str:
        """Unified diff of the graph's code; empty where the pass changed nothing."""
        lines = difflib.unified_diff(
            self.before.splitlines(), self.after.splitlines(), f"before {self.name}", f"after {self.name}", lineterm="", n=2
        )
        return "\n".join(lines)


@dataclass(frozen=True)
class Record:
    """Everything that happened while compiling one graph.

    before: the ATen graph as AOTAutograd made it. after: what Inductor was given, forward and backward one after the
    other in training. missing: kernels the passes put in that the generated code does not contain (none, or
    something is wrong).
    """

    name: str
    training: bool
    before: str
    after: str
    stages: tuple[Stage, ...]
    plan: Plan
    sites: tuple[str, ...]
    kernels: dict[str, str]
    missing: tuple[str, ...]


def records(compiled: Any) -> list[Record]:
    """One record a compiled graph, in the order they were compiled. Raises ValueError where there is none."""
    return [rebuild(graph, f"graph_{index}") for index, graph in enumerate(graphs_of(compiled))]


def plan(compiled: Any) -> Plan:
    """The plan a compiled model runs under: the decisions of all its graphs."""
    plans = [graph.stages.plan for graph in graphs_of(compiled)]
    decisions = {key: decision for each in plans for key, decision in each.decisions.items()}
    return replace(plans[0], decisions=decisions)


def rebuild(graph: CompiledGraph, name: str) -> Record:
    stages: list[Stage] = []
    before: list[str] = []
    after: dict[str, str] = {}
    sites: list[str] = []
    joint_seen = False

    def watch(kind: str) -> Callable[..., None]:
        def watched(pass_name: str, fx_graph: fx.Graph, run: Callable[[], PassResult]) -> None:
            old = code(fx_graph)
            result = run()
            stages.append(Stage(pass_name, kind, old, code(fx_graph), result.rewrites, result.rejects))

        return watched

    def joint(fx_graph: fx.Graph) -> None:
        sites.extend(gemm.site.key for gemm in annotate(fx_graph))
        before.append(code(fx_graph))
        nonlocal joint_seen
        joint_seen = _is_joint(fx_graph)
        graph.stages.joint(fx_graph, watch("joint" if joint_seen else "inference"))

    def inner(module: fx.GraphModule, is_backward: bool) -> Callable[..., Any]:
        kind = "backward" if is_backward else "forward" if joint_seen else "inference"
        graph.stages.post_grad(module.graph, watch(kind))
        after[kind] = code(module.graph)
        return module.forward

    module = compat.copy_dynamo_graph(graph.module)  # AOTAutograd changes the graph it is given
    with torch.set_grad_enabled(graph.training), compat.inside_compilation(compat.fake_mode_of(graph.fake_inputs)):
        compat.capture(module, graph.fake_inputs, joint=joint, inner=inner)

    kernels = {r.subject: r.kernel for stage in stages for r in stage.rewrites if r.kernel}
    return Record(
        name=name,
        training=graph.training,
        before="\n".join(before),
        after="\n\n".join(f"# {kind}\n{text}" for kind, text in after.items()),
        stages=tuple(stages),
        plan=graph.stages.plan,
        sites=tuple(sites),
        kernels=kernels,
        missing=tuple(missing_kernels(kernels, graph.source_code)),
    )


def missing_kernels(kernels: dict[str, str], source_code: str) -> list[str]:
    """Planned kernels that the generated code calls less often than the passes put them in."""
    wanted: dict[str, int] = {}
    for kernel in kernels.values():
        wanted[kernel] = wanted.get(kernel, 0) + 1
    return [kernel for kernel, count in wanted.items() if _calls(kernel, source_code) < count]


def _calls(kernel: str, source_code: str) -> int:
    """Calls of an operator in Inductor's wrapper code, as an extern kernel or through the dispatcher."""
    return len(re.findall(rf"(?:extern_kernels|torch\.ops(?:\.aten)?)\.{re.escape(kernel)}(?:\.default)?\(", source_code))


def _is_joint(graph: fx.Graph) -> bool:
    return any(node.meta.get("partitioner_tag") == "is_backward" for node in graph.nodes)


def code(graph: fx.Graph) -> str:
    """The graph as Python, with shapes."""
    return graph.python_code("self", verbose=True, include_device=False).src
