"""mix_tokens: a linear over the middle dimension becomes a product from the left, and nothing is transposed for it.

    linear(x^T, W, b)^T   ->   W x + b, for each matrix x of a batch

x: (B, n, d), W: (k, n). A linear contracts over the last dimension, so (B, n, d) is first copied to (B, d, n), and the
result is transposed back. A batch of products W x reads x as it lies. The values are the same up to the order of
summation. Token mixing, Wukong's linear compression and MLP-Mixer are written this way.

On a GPU the batched product moves as many bytes as the linear, so the copy is saved. Each matrix must be at least as
wide as what a tensor core multiplies at once: d >= LEAST.

On a CPU, in inference, with n and k at most MOST, the sum is written out: Inductor makes one float32 loop over d of it,
together with the norm that follows (measured with a norm: 1.1 to 2.6 times as fast as the linear in bf16). Larger sizes
are left to a GEMM.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import fx

from loka_compile import compat
from loka_compile.graph.edit import emit, replace, size_arg
from loka_compile.graph.facts import Reading
from loka_compile.graph.sites import module_name
from loka_compile.passes.base import EVERYWHERE, Context, PassResult, Rewrite, apply
from loka_compile.passes.simplify._rates import on_gpu

LEAST = 16
"""Columns that a tensor core multiplies at once."""
MOST = 32
"""Up to this many tokens, before and after, a CPU's loop is faster than its GEMM."""
DID, DID_IN_A_LOOP = "a product from the left, nothing transposed", "a sum over tokens, nothing transposed"


@dataclass(frozen=True)
class MixTokens:
    name: ClassVar[str] = "mix_tokens"
    runs_on: ClassVar[tuple[str, ...]] = EVERYWHERE

    def __call__(self, reading: Reading, context: Context) -> PassResult:
        rules = partial(pattern, reading), partial(check, reading, context), partial(rewrite, reading, on_gpu(context))
        return apply(reading.graph, reading.graph.nodes, *rules)


@dataclass(frozen=True)
class Mix:
    """A match: linear(flipped, weight, bias), where `flipped` is x^T."""

    linear: fx.Node
    flipped: fx.Node
    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None


def pattern(reading: Reading, node: fx.Node) -> Mix | None:
    """A linear over x^T, if x is a batch of matrices."""
    flipped = reading.arg(node, "input") if reading.op(node) == "linear" else None
    x = reading.flipped(flipped)
    if x is None or reading.rank(x) != 3:
        return None
    return Mix(node, flipped, x, reading.arg(node, "weight"), reading.arg(node, "bias"))


def check(reading: Reading, context: Context, found: Mix) -> str:
    """Why the linear stays; "" if it becomes a product from the left."""
    users, columns = list(found.linear.users), reading.shape(found.x)[-1]
    others = [user.name for user in users if reading.flipped(user) is None]
    if others or not users:
        return f"{', '.join(others[:3])} reads its result untransposed" if others else "nothing reads its result"
    if reason := reading.reason_against((found.flipped, found.linear, *users)):
        return reason
    if not on_gpu(context):
        return _too_much_for_a_loop(reading, found, context.training)
    if not compat.guard_free(columns >= LEAST):
        return f"each matrix of the batch has {columns} columns; tensor cores need at least {LEAST}"
    return ""


def _too_much_for_a_loop(reading: Reading, found: Mix, training: bool) -> str:
    sizes = reading.shape(found.weight)
    if training:
        return "on a CPU the gradient of a sum written out is slower than a GEMM's"
    for dtype in (reading.value(each).dtype for each in (found.x, found.weight, found.linear)):  # autocast may differ
        if dtype not in (torch.float32, torch.float64):
            return f"on a CPU a GEMM of {dtype} is faster than a written-out sum"
    if not all(isinstance(size, int) and size <= MOST for size in sizes):
        return f"it mixes {sizes[1]} tokens into {sizes[0]}; above {MOST} a CPU's GEMM is faster than a loop"
    return ""


def rewrite(reading: Reading, gpu: bool, found: Mix) -> Rewrite:
    out = (_batch if gpu else _loop)(reading, found)
    did = Rewrite(module_name(found.linear), DID if gpu else DID_IN_A_LOOP)
    for user in list(found.linear.users):
        replace(reading, user, out)
    return did


def _batch(reading: Reading, found: Mix) -> fx.Node:
    add = partial(emit, reading, found.linear)
    left = add("expand", found.weight, size_arg(reading, found.linear, found.x, 0), -1, -1)
    if found.bias is None:
        return add(torch.bmm, left, found.x)
    return add(torch.baddbmm, add("unsqueeze", found.bias, -1), left, found.x)


def _loop(reading: Reading, found: Mix) -> fx.Node:
    add = partial(emit, reading, found.linear)
    products = add(torch.mul, add("unsqueeze", found.weight, -1), add("unsqueeze", found.x, 1))
    out = add("sum", products, 2)
    return out if found.bias is None else add(torch.add, out, add("unsqueeze", found.bias, -1))
