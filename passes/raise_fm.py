"""raise_fm: Wukong's factorization machine and the norm behind it become loka::fm, one kernel.

    norm(flatten(x (x^T y)))      or (x x^T) y; without the norm too; x (B, N, D), y (N, K) or (B, N, K)

Three kernels, and what two of them leave in memory, become one where a sample's tokens fit a program: N <= 64. Works
on CUDA, in 16 bits and in inference: a gradient needs what the products leave, and the op would compute it again.
Source: Wukong (papers.md 7.1); KernelEvolve for where fusing pays (papers.md 7.6).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import fx

from loka_compile.graph import torch_ops as ops
from loka_compile.graph.reading import multiplied, only_user, value, written
from loka_compile.graph.sites import module_name
from loka_compile.graph.torch_ops import emit, flips, op_of, rank, same_sizes, shape
from loka_compile.kernels.fm import Fm, reasons_against
from loka_compile.passes.base import Context, PassResult, Rewrite, apply
from loka_compile.passes.raise_norms import LAYER, RMS, Norm, norm_of


@dataclass(frozen=True)
class RaiseFm:
    name: ClassVar[str] = "raise_fm"
    runs_on: ClassVar[tuple[str, ...]] = ("cuda",)

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        return apply(graph, graph.nodes, pattern, lambda found: check(found, context.training), rewrite)


@dataclass(frozen=True)
class Interaction:
    """x, y and the nodes from them to `last`, the second product."""

    x: fx.Node
    y: fx.Node
    first: fx.Node
    last: fx.Node


def pattern(node: fx.Node) -> Interaction | None:
    """The factorization machine that this product ends, in either order."""
    outer = multiplied(node)
    if outer is None:
        return None
    left, right = outer
    if (inner := multiplied(right)) and _is_across(inner[0], left):
        return Interaction(left, inner[1], right, node)  # x (x^T y)
    if (inner := multiplied(left)) and _is_across(inner[1], inner[0]):
        return Interaction(inner[0], right, left, node)  # (x x^T) y
    return None


def _is_across(node: fx.Node, x: fx.Node) -> bool:
    """Whether it is x^T, x a batch of matrices."""
    return flips(node) and node.args[0] is x and rank(x) == 3


def check(found: Interaction, training: bool) -> str:
    """Why it stays as it is; empty if it is raised."""
    x, y = value(found.x), value(found.y)
    if training:
        return "it is differentiated: the gradient needs what its products leave"
    sizes = *shape(found.x)[1:], *shape(found.y)[-2:]
    if y.dim() not in (2, 3) or not all(isinstance(size, int) for size in sizes):
        return f"its tokens are {tuple(x.shape)} and {tuple(y.shape)}; the kernel is for 3 and 2 or 3 sizes, all known"
    if x.dtype != y.dtype:
        return f"it multiplies {x.dtype} by {y.dtype}"
    if reasons := reasons_against(x, y):
        return reasons[0]
    if only_user(found.first) is None:
        return f"{found.first.name} is read elsewhere too"
    for each in (found.x, found.y, found.first, found.last):
        if name := written(each):
            return f"{each.name} is written to in place ({name})"
    return ""


def rewrite(found: Interaction) -> Rewrite:
    last, behind = found.last, norm_behind(found)
    if behind is None:
        call = Fm(found.x, found.y, None, None, "none", 0.0)
        out = emit(last, call.target(), *call.args)
    else:
        last = behind.last
        call = Fm(found.x, found.y, behind.weight, behind.bias, behind.norm, behind.eps)
        out = emit(last, call.target(), *call.args)
        out = emit(last, "flatten", out, 1)
    out = ops.replace_part(last, out, (found.x, found.y))
    return Rewrite(module_name(out), "one op: factorization machine" + (f", {behind.norm} norm" if behind else ""))


def norm_behind(found: Interaction) -> Norm | None:
    """The norm over a sample's values, where the product is flattened for it and for nothing else; also block_norm's,
    of one block."""
    flat = only_user(found.last)
    if flat is None or op_of(flat) not in ("flatten", "reshape", "view") or value(flat).dim() != 2 or written(flat):
        return None
    n, k = value(found.last).shape[1:]
    inner = only_user(flat)
    blocked = op_of(inner) == "unflatten" and same_sizes(value(inner).shape[1:], (1, n * k))
    x = inner if blocked else flat
    node = only_user(x)  # type: ignore[arg-type]
    if node is None or node.op != "call_function" or node.target not in LAYER + RMS:
        return None
    norm = norm_of(node)
    if blocked:
        outer = only_user(node)
        if op_of(outer) != "flatten" or not same_sizes(value(outer).shape, value(flat).shape):
            return None
        norm = replace(norm, last=outer)  # type: ignore[arg-type]
    return norm if norm.x is x and norm.shape == (n * k,) and not written(norm.last) else None
