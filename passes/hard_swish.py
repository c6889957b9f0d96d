"""hard_swish: x * clamp(x + 3, 0, 6) / 6 for SiLU and for the swish gate n * sigmoid(n).

LoKA Mods: no exponential, bounded pieces, outliers are not amplified, and it fuses with BlockNorm.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from loka_compile.graph.sites import module_name
from loka_compile.passes.base import Context, PassResult, Rewrite

SILU, HARD_SWISH = torch.nn.functional.silu, torch.nn.functional.hardswish
MULTIPLY = {operator.mul, operator.imul, torch.mul, torch.multiply}
SIGMOID = {torch.sigmoid, torch.nn.functional.sigmoid, torch.special.expit}


@dataclass(frozen=True)
class HardSwish:
    name: str = "hard_swish"
    adapts: ClassVar[bool] = True

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        rewrites = []
        for node in list(graph.nodes):
            gated = _silu(node) or _gate(node)
            if gated is None:
                continue
            with graph.inserting_before(node):
                new = graph.call_function(HARD_SWISH, (gated,))
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new)
            graph.erase_node(node)
            rewrites.append(Rewrite(module_name(new), "hard swish"))
        if rewrites:
            graph.eliminate_dead_code()
        graph.lint()
        return PassResult(tuple(rewrites))


def _silu(node: fx.Node) -> fx.Node | None:
    return node.args[0] if node.op == "call_function" and node.target is SILU else None  # type: ignore[return-value]


def _gate(node: fx.Node) -> fx.Node | None:
    """n of n * sigmoid(n), in either order."""
    multiplies = (node.op == "call_function" and node.target in MULTIPLY) or (
        node.op == "call_method" and node.target in ("mul", "multiply")
    )
    if not multiplies or len(node.args) != 2 or node.kwargs:
        return None
    for gated, gate in (node.args, node.args[::-1]):
        if isinstance(gate, fx.Node) and isinstance(gated, fx.Node) and _is_sigmoid_of(gate, gated):
            return gated
    return None


def _is_sigmoid_of(gate: fx.Node, gated: fx.Node) -> bool:
    called = gate.op == "call_function" and gate.target in SIGMOID
    return (called or (gate.op == "call_method" and gate.target == "sigmoid")) and gate.args == (gated,)
