"""float_products: on a CPU, a float32 product runs by oneDNN where that is faster than PyTorch's own, as measured.

No number changes but by how sums are rounded. It serves what the plan keeps, and graphs without a plan. Where PyTorch's
product is as fast, nothing is said: that is no refusal.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from loka_compile.graph.sites import SITE_META, operands, with_bias
from loka_compile.graph.splice import splice
from loka_compile.kernels.gemm.float_mm import float_mm
from loka_compile.passes.base import Context, PassResult, Rewrite, rejected, site_of
from loka_compile.spec.sizes import Sizes

PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


@dataclass(frozen=True)
class FloatProducts:
    name: ClassVar[str] = "float_products"
    runs_on: ClassVar[tuple[str, ...]] = ("cpu",)

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        rewrites, rejects = [], []
        for node in [n for target in PRODUCTS for n in graph.find_nodes(op="call_function", target=target)]:
            if node.meta["val"].dtype != torch.float32:
                continue
            if (sizes := sizes_of(node)) is None:
                rejects.append(rejected(node, "float32 by oneDNN is for fixed sizes"))
            elif context.by_onednn(sizes):
                rewrites.append(Rewrite(site_of(node), "float32 by oneDNN, which is faster here, as measured"))
                _rewrite(node)
        graph.lint()
        return PassResult(tuple(rewrites), tuple(rejects))


def sizes_of(node: fx.Node) -> Sizes | None:
    """The product's sizes; None if one of them is symbolic."""
    lhs, rhs, _, _, _ = operands(node)
    (m, k), n = lhs.meta["val"].shape, rhs.meta["val"].shape[1]
    return Sizes(1, m, n, k) if all(isinstance(size, int) for size in (m, n, k)) else None


def _rewrite(node: fx.Node) -> None:
    lhs, rhs, bias, alpha, beta = operands(node)
    meta = {SITE_META: node.meta[SITE_META]} if SITE_META in node.meta else {}
    written = functools.partial(_written, alpha=alpha, beta=beta)
    node.replace_all_uses_with(splice(node, written, [lhs, rhs, bias], **meta))
    node.graph.erase_node(node)


def _written(a: Tensor, b: Tensor, bias: Tensor | None, *, alpha: float, beta: float) -> Tensor:
    return with_bias(float_mm(a, b), bias, alpha, beta)
