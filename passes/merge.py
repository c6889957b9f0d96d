"""merge: linears that read the same tensor become one, of their weights side by side.

    linear(x, W1, b1), linear(x, W2, b2)   ->   slices of linear(x, cat[W1, W2], cat[b1, b2])

Queries, keys and values, gates, the first layers of experts: small GEMMs, each of which starts a kernel, reads x again
and fills a part of the chip. The values are the same; widest first, so that slices stay aligned.

Cost: the GEMMs and the one GEMM, each max(FLOPs / peak, bytes / bandwidth) + launch, its FLOPs rounded up to whole
waves of TILE x TILE outputs over SMS multiprocessors; against that the weights, which are parameters and change, are
copied next to each other at every call, and the biases. In inference once more: what would have been quantized once, is
no parameter any more. On a CPU there is no launch to save and nothing to fill: the copies cost more than they bring.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from loka_compile.graph import torch_ops as ops
from loka_compile.graph.flops import needed
from loka_compile.graph.sites import module_name
from loka_compile.graph.torch_ops import arg, emit, op_of, shape
from loka_compile.graph.writes import written as written_nodes
from loka_compile.passes.base import EVERYWHERE, Context, PassResult, Rewrite, rejected
from loka_compile.passes.rates import Rates, on_gpu, rates

LINEAR = torch.nn.functional.linear
TILE, SMS = 128, 132
CONTEXTS = {"_enter_autocast", "_exit_autocast", "_set_grad_enabled"}


@dataclass(frozen=True)
class Merge:
    name: ClassVar[str] = "merge"
    runs_on: ClassVar[tuple[str, ...]] = EVERYWHERE

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        rewrites, rejects, written = [], [], written_nodes(graph)
        place = {node: number for number, node in enumerate(graph.nodes)}
        for group in _groups(graph):
            names = ", ".join(map(module_name, group))
            reason = check(group, written, place) or costs(group, context)
            if reason:
                rejects.append(rejected(group, reason))
            else:
                _rewrite(group)
                rewrites.append(Rewrite(names, f"one linear of {len(group)}"))
        graph.lint()
        return PassResult(tuple(rewrites), tuple(rejects))


def _groups(graph: fx.Graph) -> list[list[fx.Node]]:
    """Linears of parameters that read one tensor, all with a bias or all without, widest first."""
    found: dict[object, list[fx.Node]] = {}
    read = needed(graph)  # what nothing reads has no gradient; as a part of a larger product it would have zeros
    for node in filter(read.__contains__, graph.nodes):
        weight, bias = arg(node, 1, "weight"), arg(node, 2, "bias")
        if op_of(node) == "linear" and all(x is None or x.op in ("placeholder", "get_attr") for x in (weight, bias)):
            key = arg(node, 0, "input"), bias is None, ops.value(weight).dtype, ops.value(node).dtype
            found.setdefault(key, []).append(node)
    return [sorted(group, key=_width, reverse=True) for group in found.values() if len(group) > 1]


def _width(node: fx.Node) -> int:
    return shape(arg(node, 1, "weight"))[0]  # type: ignore[no-any-return]


def check(group: Sequence[fx.Node], written: set[fx.Node], place: dict[fx.Node, int]) -> str:
    """Why these are not one linear, whatever it costs; empty if they can be."""
    if any(x in written for node in group for x in (node, *node.all_input_nodes)):
        return "something writes to one of their tensors in place"
    first, last = min(map(place.__getitem__, group)), max(map(place.__getitem__, group))
    between = (node for node, number in place.items() if first < number < last)
    if any(getattr(node.target, "__name__", "") in CONTEXTS for node in between):
        return "autocast or gradients are switched between them"
    return ""


def costs(group: Sequence[fx.Node], context: Context) -> str:
    """Why they are faster apart, in modelled time; empty if they are not."""
    if not on_gpu(context):
        return "on a CPU, copying the weights next to each other at every call costs more than one GEMM saves"
    x, weights = arg(group[0], 0, "input"), [arg(node, 1, "weight") for node in group]
    dtype, widths = ops.value(group[0]).dtype, list(map(_width, group))
    r, rows, depth = rates(context, dtype), ops.numel(shape(x)[:-1]), ops.numel(shape(x)[-1:])
    copied = 2 * dtype.itemsize * sum(ops.numel(shape(weight)) for weight in weights)
    copies = 1 + (not torch.is_grad_enabled())
    apart = sum(gemm_seconds(r, rows, depth, width, dtype) for width in widths)
    joined = gemm_seconds(r, rows, depth, sum(widths), dtype) + copies * r.seconds(0, copied)
    joined += r.launch if arg(group[0], 2, "bias") is not None else 0.0
    if joined < apart:
        return ""
    return f"apart they take {apart * 1e6:.0f} us and as one {joined * 1e6:.0f} us for {rows} rows (modelled)"


def gemm_seconds(r: Rates, rows: int, depth: int, width: int, dtype: torch.dtype, batch: int = 1) -> float:
    """Modelled seconds of (rows, depth) @ (depth, width), or of a batch of these in one kernel."""
    tiles = batch * math.ceil(rows / TILE) * math.ceil(width / TILE)
    waves = math.ceil(tiles / SMS)
    flops = 2 * depth * waves * SMS * TILE * TILE
    return r.seconds(flops, batch * dtype.itemsize * (rows * depth + depth * width + rows * width))


def _rewrite(group: Sequence[fx.Node]) -> None:
    graph = group[0].graph
    first = next(node for node in graph.nodes if node in group)
    weight = emit(first, torch.cat, [arg(node, 1, "weight") for node in group])
    biases = [arg(node, 2, "bias") for node in group]
    bias = emit(first, torch.cat, biases) if biases[0] is not None else None
    out = emit(first, LINEAR, arg(first, 0, "input"), weight, bias)
    offset = 0
    for node in group:
        width = _width(node)
        ops.replace(node, emit(node, "narrow", out, -1, offset, width))
        offset += width
