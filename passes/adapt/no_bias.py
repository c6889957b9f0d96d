"""no_bias: linear and norm layers lose their bias. Final heads, whose result reaches no GEMM, keep theirs.

LoKA Mods: the biases of large recommendation models diverge and push later tensors out of FP8's range. Dropping them
saves the largest single part of the block's latency, and FSDP has nothing to pad.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import fx
from torch.nn import functional as F

from loka_compile.graph.edit import emit, replace
from loka_compile.graph.facts import Reading
from loka_compile.graph.sites import module_name
from loka_compile.passes.base import EVERYWHERE, Context, PassResult, Rewrite, apply

BIASED = ("linear", "layer_norm")
PRODUCTS = {
    "linear",
    "matmul",
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "einsum",
    "bilinear",
    "scaled_dot_product_attention",
}


@dataclass(frozen=True)
class NoBias:
    name: ClassVar[str] = "no_bias"
    runs_on: ClassVar[tuple[str, ...]] = EVERYWHERE
    adapts: ClassVar[bool] = True

    def __call__(self, reading: Reading, context: Context) -> PassResult:
        feeding = _feeding_products(reading)
        rules = partial(pattern, reading), partial(check, reading, feeding), partial(rewrite, reading)
        return apply(reading.graph, reading.graph.nodes, *rules)


def pattern(reading: Reading, node: fx.Node) -> fx.Node | None:
    """A linear or a layer norm with a bias."""
    return node if reading.op(node) in BIASED and reading.arg(node, "bias") is not None else None


def check(reading: Reading, feeding: set[fx.Node], node: fx.Node) -> str:
    """Why the bias stays; "" if it goes."""
    bias = reading.arg(node, "bias")
    if not (isinstance(bias, fx.Node) and bias.op in ("placeholder", "get_attr")):
        return f"its bias is computed ({bias}); expected a parameter"
    if reading.op(node) == "linear" and node not in feeding:
        return "a final head keeps its bias: no GEMM comes after it"
    return ""


def rewrite(reading: Reading, node: fx.Node) -> Rewrite:
    x, weight = reading.arg(node, "input"), reading.arg(node, "weight")
    if reading.op(node) == "linear":
        new = emit(reading, node, F.linear, x, weight, None)
    else:
        shape, eps = reading.arg(node, "normalized_shape"), reading.arg(node, "eps")
        new = emit(reading, node, F.layer_norm, x, shape, weight, None, eps)
    return Rewrite(module_name(replace(reading, node, new)), "without bias")


def _feeding_products(reading: Reading) -> set[fx.Node]:
    """The nodes whose value a later product depends on, be it read or written into what the product reads."""
    feeding: set[fx.Node] = set()
    for node in reversed(reading.graph.nodes):
        if node in feeding or reading.op(node) in PRODUCTS:
            feeding |= reading.sources(node)
    return feeding
