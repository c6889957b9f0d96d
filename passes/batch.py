"""batch: linears of equal shapes over different tensors become one batched product.

    linear(x1, W1, b1), .., linear(xE, WE, bE)   ->   slices of baddbmm(stack(b), stack(x), stack(W)^T)

The second layers of experts, towers, per-domain weights: E small GEMMs, each of which starts a kernel and fills a part
of the chip. The values are the same. What reads the first of them moves behind the last one's inputs.

Cost: the E GEMMs against one of E times the tiles, each as in merge; against that inputs, weights and biases are
copied next to each other at every call. No low-precision recipe runs a batch: what is lost is little where launches
and unfilled waves dominate, as they do where this pays. On a CPU there is no launch to save and nothing to fill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from loka_compile.graph import torch_ops as ops
from loka_compile.graph.flops import needed
from loka_compile.graph.sites import module_name
from loka_compile.graph.torch_ops import arg, emit, is_tensor, op_of, rank, shape, size_arg, value
from loka_compile.graph.writes import written as written_nodes
from loka_compile.passes.base import EVERYWHERE, Context, PassResult, Rewrite, rejected
from loka_compile.passes.merge import CONTEXTS, gemm_seconds
from loka_compile.passes.rates import on_gpu, rates
from loka_compile.passes.rowwise import RANDOM


@dataclass(frozen=True)
class Batch:
    name: ClassVar[str] = "batch"
    runs_on: ClassVar[tuple[str, ...]] = EVERYWHERE

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        rewrites, rejects, written = [], [], written_nodes(graph)
        for group in _groups(graph):
            names = ", ".join(map(module_name, group))
            between = _between(graph, group)
            reason = check(group, between, written) or costs(group, context)
            if reason:
                rejects.append(rejected(group, reason))
            else:
                _gather(group, between)
                _rewrite(group)
                rewrites.append(Rewrite(names, f"one batched product of {len(group)}"))
        graph.lint()
        return PassResult(tuple(rewrites), tuple(rejects))


def _groups(graph: fx.Graph) -> list[list[fx.Node]]:
    """Linears of parameters, of equal shapes, over different tensors, none of which depends on another: as many
    linears come before each of them. In the order of the graph."""
    found: dict[object, list[fx.Node]] = {}
    level: dict[fx.Node, int] = {}
    read = needed(graph)  # what nothing reads has no gradient; as a part of a larger product it would have zeros
    for node in graph.nodes:
        is_linear = op_of(node) == "linear"
        level[node] = max((level[each] for each in node.all_input_nodes), default=0) + is_linear
        if not is_linear or node not in read:
            continue
        x, weight, bias = arg(node, 0, "input"), arg(node, 1, "weight"), arg(node, 2, "bias")
        of_parameters = all(each is None or each.op in ("placeholder", "get_attr") for each in (weight, bias))
        dtypes = {value(each).dtype for each in (node, x, weight)}
        if of_parameters and is_tensor(x) and rank(x) > 1 and len(dtypes) == 1:
            key = level[node], str(shape(x)), str(shape(weight)), bias is None, dtypes.pop(), value(x).device
            found.setdefault(key, []).append(node)
    groups = [group for group in found.values() if len(group) > 1]
    return [group for group in groups if len({arg(node, 0, "input") for node in group}) == len(group)]


def _between(graph: fx.Graph, group: Sequence[fx.Node]) -> list[fx.Node]:
    """What comes before the last of them and depends on another, in order."""
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


def check(group: Sequence[fx.Node], between: Sequence[fx.Node], written: set[fx.Node]) -> str:
    """Why these are not one product, whatever it costs; empty if they can be."""
    if any(x in written for node in (*group, *between) for x in (node, *node.all_input_nodes)):
        return "something writes in place to one of their tensors, or of those made between them"
    drawing = [node for node in between if op_of(node) in RANDOM and value(arg(node, 2, "training", True)) is not False]
    if drawing:
        return f"{drawing[0]} between them would draw its random numbers later"
    node = group[0]
    while node is not group[-1]:
        if getattr(node.target, "__name__", "") in CONTEXTS:
            return "autocast or gradients are switched between them"
        node = node.next
    return ""


def costs(group: Sequence[fx.Node], context: Context) -> str:
    """Why they are faster apart, in modelled time; empty if they are not."""
    if not on_gpu(context):
        return "on a CPU, copying inputs and weights next to each other costs more than one product saves"
    x, weight, dtype = arg(group[0], 0, "input"), arg(group[0], 1, "weight"), value(group[0]).dtype
    r, rows = rates(context, dtype), ops.numel(shape(x)[:-1])
    width, depth = ops.numel(shape(weight)[:1]), ops.numel(shape(weight)[1:])
    copied = [rows * depth, width * depth, *([width] if arg(group[0], 2, "bias") is not None else [])]
    apart = len(group) * gemm_seconds(r, rows, depth, width, dtype)
    joined = gemm_seconds(r, rows, depth, width, dtype, len(group))
    joined += sum(r.seconds(0, 2 * dtype.itemsize * len(group) * each) for each in copied)
    if joined < apart:
        return ""
    return f"apart they take {apart * 1e6:.0f} us and as one {joined * 1e6:.0f} us for {rows} rows each (modelled)"


def _gather(group: Sequence[fx.Node], between: Sequence[fx.Node]) -> None:
    """Put the linears next to each other, where the last one stands, and what depends on them behind."""
    anchor = group[-1]
    for node in between:
        anchor.append(node)
        anchor = node
    for node in group[:-1]:
        group[-1].prepend(node)


def _rewrite(group: Sequence[fx.Node]) -> None:
    first = group[0]
    inputs = [arg(node, 0, "input") for node in group]
    flat = [x if rank(x) == 2 else emit(first, torch.flatten, x, 0, -2) for x in inputs]
    stacked = emit(first, torch.stack, flat)
    weights = emit(first, "transpose", emit(first, torch.stack, [arg(node, 1, "weight") for node in group]), 1, 2)
    biases = [arg(node, 2, "bias") for node in group]
    if biases[0] is None:
        out = emit(first, torch.bmm, stacked, weights)
    else:
        bias = emit(first, "unsqueeze", emit(first, torch.stack, biases), 1)
        out = emit(first, torch.baddbmm, bias, stacked, weights)
    for index, (node, x) in enumerate(zip(group, inputs, strict=True)):
        part = emit(node, "select", out, 0, index)
        if rank(x) > 2:
            part = emit(node, "unflatten", part, 0, [size_arg(node, x, dim) for dim in range(rank(x) - 1)])
        ops.replace(node, part)
