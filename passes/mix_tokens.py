"""mix_tokens: a linear over the middle dimension multiplies from the left, and nothing is transposed for it.

    linear(x^T, W, b)^T   ->   W x + b, for each matrix x of a batch

x: (B, n, d), W: (k, n). A linear wants what it contracts to lie last, so (B, n, d) is copied to (B, d, n) first, and
its result is read across again; a batch of products with one and the same left operand reads x as it lies. The values
are the same up to the order of summation. Token mixing, Wukong's linear compression and MLP-Mixer are written so.

On a GPU a batched product reads and writes as many bytes as the linear, so that the copy is what is saved, as long as
a matrix of the batch is not smaller than what a tensor core multiplies at once: d >= LEAST. On a CPU the sum is written
out, in inference, where n and k are at most MOST: Inductor makes one loop over d of it, in float32, together with the
norm that follows (measured with one: 1.1 to 2.6 times as fast as the linear in bf16). Larger ones are left to a GEMM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from loka_compile import compat
from loka_compile.graph import torch_ops as ops
from loka_compile.graph.sites import module_name
from loka_compile.graph.torch_ops import arg, emit, flips, op_of, rank, shape, value
from loka_compile.graph.writes import written as written_nodes
from loka_compile.passes.base import EVERYWHERE, Context, PassResult, Rewrite, rejected
from loka_compile.passes.rates import on_gpu

LEAST = 16
"""Columns of a matrix that tensor cores multiply at once at least."""
MOST = 32
"""Tokens, before and after, that a CPU mixes faster by a loop than by a GEMM."""
DID, DID_IN_A_LOOP = "a product from the left, nothing transposed", "a sum over tokens, nothing transposed"


@dataclass(frozen=True)
class MixTokens:
    name: ClassVar[str] = "mix_tokens"
    runs_on: ClassVar[tuple[str, ...]] = EVERYWHERE

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        rewrites, rejects, written = [], [], written_nodes(graph)
        did, form = (DID, _batch) if on_gpu(context) else (DID_IN_A_LOOP, _loop)
        for node in [n for n in graph.nodes if op_of(n) == "linear" and _is_batch_across(arg(n, 0, "input"))]:
            reason = check(node, written, context)
            if reason:
                rejects.append(rejected(node, reason))
            else:
                _rewrite(node, form)
                rewrites.append(Rewrite(module_name(node), did))
        graph.lint()
        return PassResult(tuple(rewrites), tuple(rejects))


def _is_batch_across(node: fx.Node) -> bool:
    """x^T of a batch of matrices."""
    return flips(node) and rank(node) == 3


def check(node: fx.Node, written: set[fx.Node], context: Context) -> str:
    """Why the linear stays; empty if it becomes a product from the left."""
    x = arg(node, 0, "input").args[0]
    others = [user.name for user in node.users if not flips(user)]
    columns = shape(x)[-1]
    if others or not node.users:
        return f"its result is read as it is by {', '.join(others[:3])}" if others else "nobody reads it"
    if any(each in written for each in (x, node, *node.all_input_nodes)):
        return "something writes to one of its tensors in place"
    if not on_gpu(context):
        return _too_much_for_a_loop(x, node, context.training)
    if not compat.guard_free(columns >= LEAST):
        return f"the matrices of the batch have {columns} columns, and tensor cores want {LEAST}"
    return ""


def _too_much_for_a_loop(x: fx.Node, node: fx.Node, training: bool) -> str:
    sizes = shape(arg(node, 1, "weight"))
    if training:
        return "on a CPU the gradient of a sum that is written out is slower than a GEMM's"
    if value(x).dtype not in (torch.float32, torch.float64):
        return f"on a CPU a GEMM of {value(x).dtype} is faster than a sum that is written out"
    if not all(isinstance(size, int) and size <= MOST for size in sizes):
        return f"it mixes {sizes[1]} tokens to {sizes[0]}, and above {MOST} a CPU's GEMM is faster than a loop"
    return ""


def _rewrite(node: fx.Node, written: Callable[..., fx.Node]) -> None:
    out = written(node, arg(node, 0, "input").args[0], arg(node, 1, "weight"), arg(node, 2, "bias"))
    for user in list(node.users):
        ops.replace(user, out)
    flipped = arg(node, 0, "input")
    node.graph.erase_node(node)
    if not flipped.users:
        node.graph.erase_node(flipped)


def _batch(node: fx.Node, x: fx.Node, weight: fx.Node, bias: fx.Node | None) -> fx.Node:
    left = emit(node, "expand", weight, ops.size_arg(node, x, 0), -1, -1)
    if bias is None:
        return emit(node, torch.bmm, left, x)
    return emit(node, torch.baddbmm, emit(node, "unsqueeze", bias, -1), left, x)


def _loop(node: fx.Node, x: fx.Node, weight: fx.Node, bias: fx.Node | None) -> fx.Node:
    products = emit(node, torch.mul, emit(node, "unsqueeze", weight, -1), emit(node, "unsqueeze", x, 1))
    out = emit(node, "sum", products, 2)
    return out if bias is None else emit(node, torch.add, out, emit(node, "unsqueeze", bias, -1))
