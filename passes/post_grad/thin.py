"""thin: on GPUs, products with a dimension of 1 are written out, so that Inductor fuses them with their neighbours.

    (M, K) @ (K, 1)   ->   sum over K of a * b      a ranking model's head: fused with what makes its input
    (M, 1) @ (1, N)   ->   a * b                    its grad_input, an outer product: fused with what reads it

Such a product takes as long as reading its operands: tensor cores do not help a vector. A library call would also force
the graph to write the operands to memory first. Sums are in float32 and rounded once.

The gradient of such a weight, (1, M) @ (M, N), stays a product. It sums over the whole batch, which takes Inductor
several kernels, and the library is as fast.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import torch
from torch import fx

from loka_compile import compat
from loka_compile.graph.sites import GEMMS, SITE_META, operands
from loka_compile.graph.splice import splice
from loka_compile.passes.base import Context, PassResult, Rewrite, rejected, site_of

TYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Thin:
    name: ClassVar[str] = "thin"
    runs_on: ClassVar[tuple[str, ...]] = ("cuda",)

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        rewrites, rejects = [], []
        for node in [n for target in GEMMS for n in graph.find_nodes(op="call_function", target=target)]:
            form = pattern(node)
            if form is None:
                continue
            if reason := check(node):
                rejects.append(rejected(node, reason))
            else:
                rewrites.append(Rewrite(site_of(node), f"written out as {form.value}"))
                _rewrite(node, form)
        graph.lint()
        return PassResult(tuple(rewrites), tuple(rejects))


class Form(Enum):
    """The form in which a product with a dimension of 1 is written out."""

    OUTER = "an outer product"
    SUM = "a sum"


def pattern(node: fx.Node) -> Form | None:
    """The form of the product; None if neither K nor N is 1."""
    lhs, rhs, _, _, _ = operands(node)
    (m, k), n = lhs.meta["val"].shape[-2:], rhs.meta["val"].shape[-1]
    is_1 = lambda size: compat.guard_free(size == 1)  # noqa: E731
    if is_1(k):
        return Form.OUTER
    return Form.SUM if is_1(n) and not is_1(m) else None


def check(node: fx.Node) -> str:
    """Why the product is left alone; "" if it is written out."""
    dtype = operands(node)[0].meta["val"].dtype
    return "" if dtype in TYPES else f"operands are {dtype}; expected bfloat16, float16 or float32"


def _rewrite(node: fx.Node, form: Form) -> None:
    lhs, rhs, bias, alpha, beta = operands(node)
    dtype = node.meta["val"].dtype
    written = functools.partial(_written, dtype=dtype, alpha=alpha, beta=beta, outer=form is Form.OUTER)
    meta = {SITE_META: node.meta[SITE_META]} if SITE_META in node.meta else {}
    node.replace_all_uses_with(splice(node, written, [lhs, rhs, bias], **meta))
    node.graph.erase_node(node)


def _written(a: Any, b: Any, bias: Any, *, dtype: torch.dtype, alpha: float, beta: float, outer: bool) -> Any:
    """The product in plain operations: operands (..., M, K) and (..., K, N), computed in float32, rounded to dtype."""
    out = a.float() * b.float() if outer else (a.float() * b.mT.float()).sum(-1, keepdim=True)
    out = out if alpha == 1 else alpha * out
    if bias is not None:
        out = out + (bias.float() if beta == 1 else beta * bias.float())
    return out.to(dtype)
