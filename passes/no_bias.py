"""no_bias: linear and norm layers lose their bias; final heads, after which no GEMM comes, keep theirs.

LoKA Mods: bias vectors of large recommendation models diverge and push later tensors out of FP8's range; without them
the largest single part of the block's latency is saved, and FSDP pads nothing.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from loka_compile.graph.sites import module_name
from loka_compile.passes.base import EVERYWHERE, Context, PassResult, Rewrite, apply

LINEAR, LAYER_NORM = torch.nn.functional.linear, torch.nn.functional.layer_norm
BIAS = {LINEAR: 2, LAYER_NORM: 3, torch.layer_norm: 3}
"""Which argument the bias is."""
PRODUCTS = {
    LINEAR, torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum, torch.nn.functional.bilinear,
    torch.nn.functional.scaled_dot_product_attention,
}  # fmt: skip
PRODUCT_METHODS = {"matmul", "mm", "bmm", "addmm", "baddbmm"}


@dataclass(frozen=True)
class NoBias:
    name: ClassVar[str] = "no_bias"
    runs_on: ClassVar[tuple[str, ...]] = EVERYWHERE
    adapts: ClassVar[bool] = True

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        feeding = _feeding_products(graph)
        return apply(graph, graph.nodes, pattern, lambda node: check(node, feeding), _drop)


def pattern(node: fx.Node) -> fx.Node | None:
    """A product that has a bias."""
    biased = node.op == "call_function" and node.target in BIAS and _bias(node) is not None
    return node if biased else None


def check(node: fx.Node, feeding: set[fx.Node]) -> str:
    """Why the bias stays; empty if it goes."""
    bias = _bias(node)
    if not (isinstance(bias, fx.Node) and bias.op in ("placeholder", "get_attr")):
        return f"its bias is computed ({bias}), not a parameter"
    if node.target is LINEAR and node not in feeding:
        return "a final head keeps its bias: no GEMM comes after it"
    return ""


def _bias(node: fx.Node) -> Any:
    place = BIAS[node.target]  # type: ignore[index]
    return node.args[place] if len(node.args) > place else node.kwargs.get("bias")


def _drop(node: fx.Node) -> Rewrite:
    if "bias" in node.kwargs:
        node.update_kwarg("bias", None)
    else:
        node.update_arg(BIAS[node.target], None)  # type: ignore[index]
    return Rewrite(module_name(node), "without bias")


def _feeding_products(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose value some later product depends on."""
    feeding: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node in feeding or is_product(node):
            feeding.update(node.all_input_nodes)
    return feeding


def is_product(node: fx.Node) -> bool:
    if node.op == "call_function":
        return node.target in PRODUCTS or node.target is operator.matmul
    return node.op == "call_method" and node.target in PRODUCT_METHODS
