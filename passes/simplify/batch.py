"""batch: linears of equal shapes over different tensors become one batched product.

    linear(x1, W1, b1), .., linear(xE, WE, bE)   ->   slices of baddbmm(stack(b), stack(x), stack(W)^T)

Examples are the second layers of experts, towers and per-domain weights: E small GEMMs, each of which starts a kernel
and fills a part of the chip. The values are the same. Readers of the first linear move behind the inputs of the last
one.

Cost: E GEMMs, against one GEMM with E times the tiles (_rates.gemm_seconds) and copies of inputs, weights and biases at
every call. No low-precision recipe runs a batch. That loses little: launches and unfilled waves dominate where this
pays. On a CPU there is no launch to save and no chip to fill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import fx

from loka_compile import compat
from loka_compile.graph.edit import emit, replace, size_arg
from loka_compile.graph.facts import Reading
from loka_compile.graph.flow import differentiated
from loka_compile.graph.sites import module_name
from loka_compile.graph.sizes import numel
from loka_compile.passes.base import EVERYWHERE, Context, PassResult, Rewrite, rejected
from loka_compile.passes.simplify._rates import gemm_seconds, on_gpu, rates


@dataclass(frozen=True)
class Batch:
    name: ClassVar[str] = "batch"
    runs_on: ClassVar[tuple[str, ...]] = EVERYWHERE

    def __call__(self, reading: Reading, context: Context) -> PassResult:
        rewrites, rejects = [], []
        for group in _groups(reading):
            names, between = ", ".join(map(module_name, group)), _between(reading.graph, group)
            reason = reading.reason_against((*group, *between)) or costs(reading, group, context)
            if reason:
                rejects.append(rejected(group, reason))
            else:
                _gather(group, between)
                _rewrite(reading, group)
                rewrites.append(Rewrite(names, f"one batched product of {len(group)}"))
        reading.graph.lint()
        return PassResult(tuple(rewrites), tuple(rejects))


def _groups(reading: Reading) -> list[list[fx.Node]]:
    """Groups of linears that can be one product, in the order of the graph: linears of parameters, of equal shapes,
    over different tensors. None depends on another, because equally many linears come before each of them."""
    found: dict[object, list[fx.Node]] = {}
    level: dict[fx.Node, int] = {}
    read, learning = reading.needed(), differentiated(reading)
    for node in reading.graph.nodes:
        is_linear = reading.op(node) == "linear"
        level[node] = max((level[each] for each in node.all_input_nodes), default=0) + is_linear
        if not is_linear or node not in read:
            continue
        x, weight, bias = (reading.arg(node, name) for name in ("input", "weight", "bias"))
        of_parameters = all(each is None or each.op in ("placeholder", "get_attr") for each in (weight, bias))
        dtypes = {reading.value(each).dtype for each in (node, x, weight)}
        if of_parameters and reading.rank(x) > 1 and reading.rank(weight) == 2 and len(dtypes) == 1:
            sizes = str(reading.shape(x)), str(reading.shape(weight))
            key = node in learning, level[node], *sizes, bias is None, dtypes.pop(), reading.value(x).device
            found.setdefault(key, []).append(node)
    groups = [group for group in found.values() if len(group) > 1]
    return [group for group in groups if len({reading.arg(node, "input") for node in group}) == len(group)]


def _between(graph: fx.Graph, group: Sequence[fx.Node]) -> list[fx.Node]:
    """The nodes before the last linear that depend on another linear of the group, in order."""
    after, waiting = {group[0]}, set(group)
    found = []
    for node in graph.nodes:
        if node in waiting:
            waiting.remove(node)
            after.add(node)
        elif after & set(node.all_input_nodes):
            after.add(node)
            found.append(node)
        if not waiting:
            break
    return found


def costs(reading: Reading, group: Sequence[fx.Node], context: Context) -> str:
    """Why the linears stay apart, in modelled time; "" if one product is faster."""
    if not on_gpu(context):
        return "on a CPU, copying inputs and weights next to each other costs more than one product saves"
    x, weight = (reading.shape(reading.arg(group[0], name)) for name in ("input", "weight"))
    dtype, rows, (width, depth) = reading.value(group[0]).dtype, numel(x[:-1]), map(compat.concrete, weight)
    r, biased = rates(context, dtype), reading.arg(group[0], "bias") is not None
    copied = [rows * depth, width * depth, *([width] if biased else [])]
    apart = len(group) * gemm_seconds(r, rows, depth, width, dtype)
    joined = gemm_seconds(r, rows, depth, width, dtype, len(group))
    joined += sum(r.seconds(0, 2 * dtype.itemsize * len(group) * each) for each in copied)
    if joined < apart:
        return ""
    return f"apart they take {apart * 1e6:.0f} us, as one {joined * 1e6:.0f} us, for {rows} rows each (modelled)"


def _gather(group: Sequence[fx.Node], between: Sequence[fx.Node]) -> None:
    """Move the linears to where the last one stands, and the nodes that depend on them behind it."""
    anchor = group[-1]
    for node in between:
        anchor.append(node)
        anchor = node
    for node in group[:-1]:
        group[-1].prepend(node)


def _rewrite(reading: Reading, group: Sequence[fx.Node]) -> None:
    add = partial(emit, reading, group[0])
    inputs, weights, biases = ([reading.arg(node, name) for node in group] for name in ("input", "weight", "bias"))
    flat = [x if reading.rank(x) == 2 else add(torch.flatten, x, 0, -2) for x in inputs]
    left, right = add(torch.stack, flat), add("transpose", add(torch.stack, weights), 1, 2)
    if biases[0] is None:
        out = add(torch.bmm, left, right)
    else:
        out = add(torch.baddbmm, add("unsqueeze", add(torch.stack, biases), 1), left, right)
    for index, (node, x) in enumerate(zip(group, inputs, strict=True)):
        part = emit(reading, node, "select", out, 0, index)
        if reading.rank(x) > 2:
            sizes = [size_arg(reading, node, x, dim) for dim in range(reading.rank(x) - 1)]
            part = emit(reading, node, "unflatten", part, 0, sizes)
        replace(reading, node, part)
