"""Records: what happened while a graph was compiled, told again.

A record is rebuilt by running the pipeline once more, without code generation, on what a CompiledGraph keeps. So it
is complete on a warm cache too, where no pass ran, and it is no side effect of a pass.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from loka_compile import compat
from loka_compile.graph.nodes import is_backward
from loka_compile.graph.sites import annotate, module_name
from loka_compile.inspect.compiled import CompiledGraph, graphs_of
from loka_compile.inspect.unseen import OPAQUE
from loka_compile.passes import PassResult, Reject, Rewrite
from loka_compile.spec.plan import Plan
from loka_compile.spec.site import Site


@dataclass(frozen=True)
class Stage:
    """One pass on one graph (`dynamo`, `inference`, `joint`, `forward` or `backward`): the code before and after."""

    name: str
    graph: str
    before: str
    after: str
    rewrites: tuple[Rewrite, ...]
    rejects: tuple[Reject, ...]

    @property
    def diff(self) -> str:
        """Unified diff of the graph's code; empty where the pass changed nothing."""
        old, new = self.before.splitlines(), self.after.splitlines()
        names = f"before {self.name}", f"after {self.name}"
        return "\n".join(difflib.unified_diff(old, new, *names, lineterm="", n=2))


@dataclass(frozen=True)
class Record:
    """Everything that happened while compiling one graph.

    before: the ATen graph as AOTAutograd made it. after: what Inductor was given, forward and backward one after the
    other in training. sites: its GEMMs before any pass. kernels: by site key, what the passes put in. missing:
    kernels the passes put in that the generated code does not contain; if there are any, something is wrong. pending:
    site keys of a backward that has not run yet, and is compiled when it first runs. opaque: operators with GEMMs
    inside, which are no sites, with the modules they are in. inputs: names and shapes of what it is called with.
    """

    name: str
    training: bool
    before: str
    after: str
    stages: tuple[Stage, ...]
    plan: Plan
    sites: tuple[Site, ...]
    kernels: dict[str, str]
    missing: tuple[str, ...]
    pending: tuple[str, ...] = ()
    opaque: tuple[tuple[str, str], ...] = ()
    inputs: str = ""


def records(compiled: Any) -> list[Record]:
    """One record a compiled graph, in the order they were compiled. Raises ValueError where there is none."""
    return [rebuild(graph, f"graph_{index}") for index, graph in enumerate(graphs_of(compiled))]


Look = Callable[[str, str, fx.Graph], None]
"""Told of every graph (as `Stage.graph` names it) as it comes to the passes, "", and as each pass, by name, left it."""


def rebuild(graph: CompiledGraph, name: str, look: Look = lambda kind, pass_name, fx_graph: None) -> Record:
    stages = [
        Stage(each.name, "dynamo", code(each.before), code(each.after), each.result.rewrites, each.result.rejects)
        for each in graph.changes
    ]
    before: list[str] = []
    after: dict[str, str] = {}
    sites: list[Site] = []
    opaque: list[tuple[str, str]] = []
    joint_seen = False

    def watch(kind: str) -> Callable[..., None]:
        def watched(pass_name: str, fx_graph: fx.Graph, run: Callable[[], PassResult]) -> None:
            old = code(fx_graph)
            result = run()
            stages.append(Stage(pass_name, kind, old, code(fx_graph), result.rewrites, result.rejects))
            look(kind, pass_name, fx_graph)

        return watched

    def joint(fx_graph: fx.Graph) -> None:
        sites.extend(gemm.site for gemm in annotate(fx_graph))
        opaque.extend((str(n.target), module_name(n)) for n in fx_graph.nodes if str(n.target) in OPAQUE)
        before.append(code(fx_graph))
        nonlocal joint_seen
        joint_seen = _is_joint(fx_graph)
        kind = "joint" if joint_seen else "inference"
        look(kind, "", fx_graph)
        graph.stages.joint(fx_graph, watch(kind))

    def inner(module: fx.GraphModule, is_backward: bool) -> Callable[..., Any]:
        kind = "backward" if is_backward else "forward" if joint_seen else "inference"
        look(kind, "", module.graph)
        graph.stages.post_grad(module.graph, watch(kind))
        after[kind] = code(module.graph)
        return module.forward

    module = compat.copy_dynamo_graph(graph.module)  # AOTAutograd changes the graph it is given
    with compat.inside(graph.region), compat.inside_compilation(compat.fake_mode_of(graph.fake_inputs)):
        compat.capture(module, graph.fake_inputs, joint=joint, inner=inner)

    kernels = {r.site: r.kernel for stage in stages for r in stage.rewrites if r.kernel}
    later = [stage for stage in stages if stage.graph == "backward" and not graph.has_backward]
    pending = {r.site for stage in later for r in stage.rewrites if r.kernel}
    due = {key: kernel for key, kernel in kernels.items() if key not in pending}
    return Record(
        name=name,
        training=joint_seen,
        before="\n".join(before),
        after="\n\n".join(f"# {kind}\n{text}" for kind, text in after.items()),
        stages=tuple(stages),
        plan=graph.stages.plan,
        sites=tuple(sites),
        kernels=kernels,
        missing=tuple(missing_kernels(due, graph.source_code)),
        pending=tuple(sorted(pending)),
        opaque=tuple(dict.fromkeys(opaque)),
        inputs=graph.inputs,
    )


def missing_kernels(kernels: dict[str, str], source_code: str) -> list[str]:
    """The planned kernels that the generated code calls less often than the passes put them in."""
    wanted: dict[str, int] = {}
    for kernel in kernels.values():
        wanted[kernel] = wanted.get(kernel, 0) + 1
    return [kernel for kernel, count in wanted.items() if _calls(kernel, source_code) < count]


def _calls(kernel: str, source_code: str) -> int:
    """How often Inductor's wrapper code, Python or C++, calls an operator: as an extern kernel or by the dispatcher."""
    kernel, _, dtype = kernel.rstrip("]").partition("[")
    name, code = re.escape(kernel), re.sub(r"#.*|^\s*//.*", "", source_code, flags=re.MULTILINE)  # without comments
    if dtype and "extern_kernels." in code:
        return _calls_writing(name, dtype, code)
    forms = (
        rf"(?:extern_kernels|torch\.ops(?:\.aten)?)\.{name}(?:\.default|\.out)?\(",
        rf"aoti_torch_(?:cpu|cuda)_{name}(?:_out)?\(",
        rf'"{re.escape(kernel.replace(".", "::"))}", "(?:out)?"',
    )
    return sum(len(re.findall(form, code)) for form in forms)


def _calls_writing(name: str, dtype: str, code: str) -> int:
    """How often Inductor's Python wrapper calls an extern kernel with an output buffer of the dtype."""
    allocated = r"(\w+) = empty_strided_\w+\(.*\btorch\.(\w+)\)"
    taken_over = r"(\w+) = (?:reinterpret_tensor\()?(\w+)\b.*; del \2\b"  # a buffer in another's memory
    dtypes: dict[str, str] = {}
    calls = 0
    for line in code.splitlines():
        if found := re.search(allocated, line):
            dtypes[found[1]] = found[2]
        elif found := re.search(taken_over, line):
            dtypes[found[1]] = dtypes.get(found[2], "")
        elif found := re.search(rf"extern_kernels\.{name}\(.*\bout=(\w+)\)", line):
            calls += dtypes.get(found[1]) == dtype
    return calls


def _is_joint(graph: fx.Graph) -> bool:
    return any(map(is_backward, graph.nodes))


def code(graph: fx.Graph) -> str:
    """The graph as Python, with shapes."""
    return graph.python_code("self", verbose=True, include_device=False).src
