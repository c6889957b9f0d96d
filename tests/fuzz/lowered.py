"""A Dynamo graph through AOTAutograd and all passes on ATen's graphs, under a plan that lowers every GEMM.

Nothing is generated: the graphs that Inductor would be given are run operator by operator, in float64 (wide.py). What
a plan rounds is not what is judged here, but what it multiplies, scales, transposes, pads, fuses and shares.
"""

from __future__ import annotations

import unittest.mock
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch._inductor import inductor_prims

from loka_compile import compat
from loka_compile.graph.sites import annotate
from loka_compile.kernels.providers import triton
from loka_compile.passes import PIPELINE, PassResult
from loka_compile.passes.stages import Stages
from loka_compile.spec.decision import Candidate, Decision
from loka_compile.spec.plan import Plan

CPU = (
    "int8_rowwise aten",
    "uint8_affine aten",
    "bf16 aten",
    "fp8_rowwise aten",
    "uint8_affine onednn",
    "fp8_blockwise emulated",
    "fp8_tensorwise aten",
    "uint8_rowwise aten",
    "fp16 aten",
)
GPU = (
    "fp8_rowwise triton",
    "bf16 triton",
    "fp8_rowwise triton",
    "fp8_tensorwise triton",
    "bf16 triton",
    "fp8_blockwise triton",
    "fp8_rowwise triton",
    "bf16 aten",
    "int8_rowwise aten",
    "fp8_rowwise triton",
    "fp8_rowwise aten",
)

RECIPES = {"cpu": CPU, "cuda": GPU}


@dataclass(frozen=True)
class Recipes:
    """One for all sites; or, with several, one after the other. Where it does not run, the next. thin: products with
    vectors too, which most plans keep as they are."""

    device: str
    names: tuple[str, ...]
    thin: bool = True

    @classmethod
    def of(cls, number: int, device: str) -> Recipes:
        """A choice among them, by a number."""
        known = RECIPES[device]
        several, thin, number = number % 4 == 3, number // 4 % 3 == 0, number // 12
        first = number % len(known)
        return cls(device, known[first:] + known[:first] if several else (known[first],), thin)

    def plan(self, graph: fx.Graph) -> Plan:
        target, decisions = "cpu" if self.device == "cpu" else "h100", {}
        for place, gemm in enumerate(annotate(graph)):
            if 1 in (gemm.site.N, gemm.site.K) and not self.thin:
                continue
            recipe, provider = self.names[place % len(self.names)].split()
            decisions[gemm.site.key] = Decision(gemm.site, Candidate(recipe, provider), "all of them")
        return Plan(target, decisions, origin="random")


@dataclass(frozen=True)
class Lowered:
    """call: what is called in place of a Dynamo graph. draws: some of it draws random numbers, which Inductor takes
    from seeds of its own, so that they are others than eager mode's."""

    call: Callable[..., Any]
    draws: bool


def lowered(gm: fx.GraphModule, inputs: Sequence[Any], recipes: Recipes | None, fired: Counter[str]) -> Lowered:
    """Without recipes as AOTAutograd leaves it. fired: rewrites by pass."""
    stages: list[Stages] = []
    draws: list[bool] = []

    def watch(name: str, graph: fx.Graph, run: Callable[[], PassResult]) -> None:
        result = run()
        if result.rewrites:
            fired[name] += 1

    def joint(graph: fx.Graph) -> None:
        if recipes is not None:
            stages.append(Stages(PIPELINE, recipes.plan(graph), recipes.device))
            stages[-1].joint(graph, watch)

    def inner(module: fx.GraphModule, is_backward: bool) -> Callable[..., Any]:
        if stages:
            stages[-1].post_grad(module.graph, watch)
            module.graph.lint()
        draws.append(any(node.target is inductor_prims.seeds for node in module.graph.nodes))
        module.recompile()
        return lambda *args: fx.Interpreter(module).run(*args)

    no_gpu = unittest.mock.patch.object(triton, "_fp8_here", lambda: True)  # there is none here to ask
    no_print = unittest.mock.patch.object(fx.GraphModule, "print_readable", lambda *_, **__: "")  # for logs
    with no_gpu, no_print:
        call = compat.capture(compat.copy_dynamo_graph(gm), inputs, joint=joint, inner=inner)
    return Lowered(lambda *args: _flat(call(*args)), any(draws))


def _flat(outs: Any) -> Iterator[Any]:
    yield from outs if isinstance(outs, tuple | list) else (outs,)
