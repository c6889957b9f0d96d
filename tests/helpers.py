"""What several tests share: a function compiled op by op, its graphs kept to look at."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from examples.apart import APART
from loka_compile import compat
from loka_compile.graph.rerun import is_training
from loka_compile.inspect.records import code
from loka_compile.passes import PIPELINE, Pass, PassResult, Pipeline
from loka_compile.passes.dynamo import run_on_dynamo
from loka_compile.passes.stages import Stages
from loka_compile.spec.plan import Plan
from loka_compile.spec.processor import processor

INT_MM = "loka.scaled_gemm" if processor().int_mm_saturates else "_int_mm"
"""What an int8 product of aten's is in generated code: one call that Inductor sees, or an op of ours around two."""


@dataclass
class Captured:
    """A torch.compile result without code generation: callable, and differentiable where its inputs are.

    graphs: copies of the graph by when they were taken: `before` and `after` the joint passes, `inference`, or
    `forward` and `backward` after all. results: by pass and graph, what the pass returned.
    """

    call: Callable[..., Any]
    graphs: dict[str, fx.Graph] = field(default_factory=dict)
    results: dict[tuple[str, str], PassResult] = field(default_factory=dict)
    compilations: int = 0

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)

    def code(self, graph: str) -> str:
        return code(self.graphs[graph])

    def ops(self, graph: str) -> Counter[str]:
        return count_ops(self.graphs[graph])


def compile_op_by_op(
    fn: Callable[..., Any],
    plan: Plan,
    *,
    dynamic: bool | None = None,
    pipeline: Pipeline = PIPELINE,
    device: str = "cpu",
    on_dynamo: Sequence[Pass] = (),
) -> Captured:
    """`fn` through loka's passes under `plan`, its final graphs run by fx.Interpreter. on_dynamo: passes that run on
    the Dynamo graph first."""
    stages = Stages(pipeline, plan, device)

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        captured.compilations += 1
        kind = ["inference"]
        gm, changes = run_on_dynamo(gm, on_dynamo, device, plan.target, is_training(inputs))
        captured.results |= {(change.name, "dynamo"): change.result for change in changes}

        def watch(name: str, graph: fx.Graph, run: Callable[[], PassResult]) -> None:
            captured.results[name, kind[0]] = run()

        def joint(graph: fx.Graph) -> None:
            captured.graphs["before"] = copy.deepcopy(graph)
            if any(node.meta.get("partitioner_tag") == "is_backward" for node in graph.nodes):
                kind[0] = "joint"
            stages.joint(graph, watch)
            captured.graphs["after"] = copy.deepcopy(graph)

        def inner(module: fx.GraphModule, is_backward: bool) -> Callable[..., Any]:
            if kind[0] != "inference":
                kind[0] = "backward" if is_backward else "forward"
            stages.post_grad(module.graph, watch)
            captured.graphs[kind[0]] = copy.deepcopy(module.graph)
            module.recompile()
            return fx.Interpreter(module).run

        return compat.capture(gm, inputs, joint=joint, inner=inner)

    captured = Captured(torch.compile(fn, backend=backend, dynamic=dynamic, **APART))
    return captured


def skipped(captured: Captured, name: str, graph: str) -> bool:
    """Whether the runner left a pass out, as it does not serve the graph's device, and that is all there is to say."""
    result = captured.results[name, graph]
    (reject,) = result.rejects
    return not result.rewrites and (reject.pass_name, reject.site, reject.node) == (name, "", "")


def speak_of(reasons: Iterable[str], *words: str) -> bool:
    """Whether there is a reason for each word, in order, that has it, and no other."""
    reasons = list(reasons)
    return len(reasons) == len(words) and all(word in reason for word, reason in zip(words, reasons, strict=True))


def count_ops(graph: fx.Graph) -> Counter[str]:
    """How often each operator is called: `aten.mm`, `loka.quantize`, without the overload's name."""
    targets = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    return Counter(".".join(target.split(".")[:2]) for target in targets)


def sqnr_db(out: torch.Tensor, reference: torch.Tensor) -> float:
    """Signal over error in dB, in float64."""
    out, reference = out.double(), reference.double()
    return (10 * torch.log10(reference.square().sum() / (out - reference).square().sum())).item()
