"""mix_tokens: on GPUs, a linear over the middle dimension multiplies from the left, and nothing is transposed for it.

    linear(x^T, W, b)^T   ->   W x + b, for each matrix x of a batch

x: (B, n, d), W: (k, n). A linear wants what it contracts to lie last, so (B, n, d) is copied to (B, d, n) first, and
its result is read across again; a batch of products with one and the same left operand reads x as it lies. The values
are the same up to the order of summation. Token mixing, Wukong's linear compression and MLP-Mixer are written so.

On a CPU one large GEMM is faster than a batch of small ones, by more than the copy. On a GPU both read and write as
many bytes, so that the copy is what is saved, as long as a matrix of the batch is not smaller than what a tensor core
multiplies at once: d >= LEAST.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from loka_compile import compat
from loka_compile.graph import torch_ops as ops
from loka_compile.graph.sites import module_name
from loka_compile.graph.torch_ops import arg, emit, is_tensor, op_of, rank, shape
from loka_compile.passes.base import Context, PassResult, Reject, Rewrite
from loka_compile.passes.rates import on_gpu

LEAST = 16
"""Columns of a matrix that tensor cores multiply at once at least."""


@dataclass(frozen=True)
class MixTokens:
    name: str = "mix_tokens"

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        rewrites, rejects, written = [], [], ops.written(graph)
        for node in [n for n in graph.nodes if op_of(n) == "linear" and flips(arg(n, 0, "input"))]:
            reason = check(node, written, context)
            if reason:
                rejects.append(Reject(module_name(node), reason))
            else:
                _rewrite(node)
                rewrites.append(Rewrite(module_name(node), "a product from the left, nothing transposed"))
        graph.lint()
        return PassResult(tuple(rewrites), tuple(rejects))


def flips(node: object) -> bool:
    """A transpose of the last two dimensions of a batch of matrices."""
    if not is_tensor(node) or not node.args or not is_tensor(node.args[0]) or rank(node.args[0]) != 3:  # type: ignore[attr-defined]
        return False
    if op_of(node) == "mT":
        return True
    dims = [arg(node, 1, "dim0"), arg(node, 2, "dim1")] if op_of(node) == "transpose" else []  # type: ignore[arg-type]
    return all(isinstance(dim, int) for dim in dims) and sorted(dim % 3 for dim in dims) == [1, 2]


def check(node: fx.Node, written: set[fx.Node], context: Context) -> str:
    """Why the linear stays; empty if it becomes a product from the left."""
    x = arg(node, 0, "input").args[0]
    others = [user.name for user in node.users if not flips(user)]
    columns = shape(x)[-1]
    if others or not node.users:
        return f"its result is read as it is by {', '.join(others[:3])}" if others else "nobody reads it"
    if any(ops.root(each) in written for each in (x, node, *node.all_input_nodes)):
        return "something writes to one of its tensors in place"
    if not on_gpu(context):
        return "on a CPU one large GEMM is faster than a batch of small ones"
    if not compat.guard_free(columns >= LEAST):
        return f"the matrices of the batch have {columns} columns, and tensor cores want {LEAST}"
    return ""


def _rewrite(node: fx.Node) -> None:
    x, weight, bias = arg(node, 0, "input").args[0], arg(node, 1, "weight"), arg(node, 2, "bias")
    left = emit(node, "expand", weight, ops.size_arg(node, x, 0), -1, -1)
    if bias is None:
        out = emit(node, torch.bmm, left, x)
    else:
        out = emit(node, torch.baddbmm, emit(node, "unsqueeze", bias, -1), left, x)
    for user in list(node.users):
        ops.replace(user, out)
    flipped = arg(node, 0, "input")
    node.graph.erase_node(node)
    if not flipped.users:
        node.graph.erase_node(flipped)
