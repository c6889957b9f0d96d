"""thin: on GPUs, products with a dimension of 1 are written out, so that Inductor fuses them with their neighbours.

    (M, K) @ (K, 1)   ->   sum over K of a * b      the head of a ranking model: reads once what makes its input
    (M, 1) @ (1, N)   ->   a * b                    its grad_input: an outer product, fused with what reads it

No tensor core helps a vector: the product takes as long as reading its operands, and a library call makes the graph
write them down for it first. Sums are in float32, rounded once. A gradient of such a weight, (1, M) @ (M, N), stays:
a sum over the whole batch is a reduction of several kernels, and the library's is none worse.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from loka_compile import compat
from loka_compile.graph.sites import GEMMS, SITE_META, module_name, operands
from loka_compile.graph.splice import splice
from loka_compile.passes.base import Context, PassResult, Reject, Rewrite

TYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Thin:
    name: str = "thin"

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        rewrites, rejects = [], []
        if context.device == "cuda":
            for node in [n for target in GEMMS for n in graph.find_nodes(op="call_function", target=target)]:
                what, reason = pattern(node)
                key = node.meta[SITE_META].key if SITE_META in node.meta else module_name(node)
                if reason:
                    rejects.append(Reject(key, reason))
                if what and not reason:
                    _rewrite(node, what)
                    rewrites.append(Rewrite(key, f"written out as {what}"))
        graph.lint()
        return PassResult(tuple(rewrites), tuple(rejects))


def pattern(node: fx.Node) -> tuple[str, str]:
    """What the product is, "" if it has no dimension of 1; and why it is left alone, "" if it is not."""
    lhs, rhs, _, _, _ = operands(node)
    m, k, n = (*lhs.meta["val"].shape[-2:], rhs.meta["val"].shape[-1])
    is_1 = lambda size: compat.guard_free(size == 1)  # noqa: E731
    what = "an outer product" if is_1(k) else "a sum" if is_1(n) and not is_1(m) else ""
    if not what:
        return "", ""
    dtype = lhs.meta["val"].dtype
    return what, "" if dtype in TYPES else f"its operands are {dtype}"


def _rewrite(node: fx.Node, what: str) -> None:
    lhs, rhs, bias, alpha, beta = operands(node)
    written = functools.partial(_written, dtype=node.meta["val"].dtype, alpha=alpha, beta=beta, outer="outer" in what)
    meta = {SITE_META: node.meta[SITE_META]} if SITE_META in node.meta else {}
    node.replace_all_uses_with(splice(node, written, [lhs, rhs, bias], **meta))
    node.graph.erase_node(node)


def _written(a: Any, b: Any, bias: Any, *, dtype: torch.dtype, alpha: float, beta: float, outer: bool) -> Any:
    out = a.float() * b.float() if outer else (a.float() * b.mT.float()).sum(-1, keepdim=True)
    out = out if alpha == 1 else alpha * out
    if bias is not None:
        out = out + (bias.float() if beta == 1 else beta * bias.float())
    return out.to(dtype)
