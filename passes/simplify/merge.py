"""merge: linears that read the same tensor become one linear with their weights side by side.

    linear(x, W1, b1), linear(x, W2, b2)   ->   slices of linear(x, cat[W1, W2], cat[b1, b2])

Examples are queries, keys and values, gates, and the first layers of experts: small GEMMs, each of which starts a
kernel, reads x again and fills a part of the chip. The values are the same. The widest comes first, so that slices stay
aligned.

Cost: the GEMMs apart, against one GEMM (_rates.gemm_seconds) and a copy of weights and biases at every call, because
parameters may change. In inference the weights count twice: a concatenation is no parameter, so it cannot be quantized
once. On a CPU the copies cost more than they bring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx
from torch.nn import functional as F

from loka_compile.graph.edit import emit, replace
from loka_compile.graph.facts import Reading
from loka_compile.graph.flow import differentiated
from loka_compile.graph.sites import module_name
from loka_compile.graph.sizes import numel
from loka_compile.passes.base import EVERYWHERE, Context, PassResult, Rewrite, rejected
from loka_compile.passes.simplify._rates import gemm_seconds, on_gpu, rates


@dataclass(frozen=True)
class Merge:
    name: ClassVar[str] = "merge"
    runs_on: ClassVar[tuple[str, ...]] = EVERYWHERE

    def __call__(self, reading: Reading, context: Context) -> PassResult:
        rewrites, rejects = [], []
        for group in _groups(reading):
            names = ", ".join(map(module_name, group))
            reason = reading.reason_against(group) or costs(reading, group, context)
            if reason:
                rejects.append(rejected(group, reason))
            else:
                _rewrite(reading, group)
                rewrites.append(Rewrite(names, f"one linear of {len(group)}"))
        reading.graph.lint()
        return PassResult(tuple(rewrites), tuple(rejects))


def _groups(reading: Reading) -> list[list[fx.Node]]:
    """Groups of linears of parameters that read one tensor, all with a bias or all without, widest first."""
    found: dict[object, list[fx.Node]] = {}
    read, learning = reading.needed(), differentiated(reading)
    for node in [each for each in reading.graph.nodes if each in read and reading.op(each) == "linear"]:
        x, weight, bias = (reading.arg(node, name) for name in ("input", "weight", "bias"))
        of_parameters = all(each is None or each.op in ("placeholder", "get_attr") for each in (weight, bias))
        if of_parameters and reading.rank(weight) == 2:
            key = node in learning, x, bias is None, reading.value(weight).dtype, reading.value(node).dtype
            found.setdefault(key, []).append(node)
    width = lambda node: width_of(reading, node)  # noqa: E731
    return [sorted(group, key=width, reverse=True) for group in found.values() if len(group) > 1]


def width_of(reading: Reading, linear: fx.Node) -> Any:
    """The linear's output features."""
    return reading.shape(reading.arg(linear, "weight"))[0]


def costs(reading: Reading, group: Sequence[fx.Node], context: Context) -> str:
    """Why the linears stay apart, in modelled time; "" if one linear is faster."""
    if not on_gpu(context):
        return "on a CPU, copying the weights next to each other at every call costs more than one GEMM saves"
    dtype, *sizes = reading.value(group[0]).dtype, *reading.shape(reading.arg(group[0], "input"))
    r, rows, depth = rates(context, dtype), numel(sizes[:-1]), numel(sizes[-1:])
    widths = [width_of(reading, node) for node in group]
    copied = 2 * dtype.itemsize * depth * sum(widths)
    copies = 1 + (not torch.is_grad_enabled())
    apart = sum(gemm_seconds(r, rows, depth, width, dtype) for width in widths)
    joined = gemm_seconds(r, rows, depth, sum(widths), dtype) + copies * r.seconds(0, copied)
    joined += r.launch if reading.arg(group[0], "bias") is not None else 0.0
    if joined < apart:
        return ""
    return f"apart they take {apart * 1e6:.0f} us, as one {joined * 1e6:.0f} us, for {rows} rows (modelled)"


def _rewrite(reading: Reading, group: Sequence[fx.Node]) -> None:
    first = min(group)
    weight = emit(reading, first, torch.cat, [reading.arg(node, "weight") for node in group])
    biases = [reading.arg(node, "bias") for node in group]
    bias = emit(reading, first, torch.cat, biases) if biases[0] is not None else None
    out = emit(reading, first, F.linear, reading.arg(first, "input"), weight, bias)
    offset = 0
    for node in group:
        width = width_of(reading, node)
        replace(reading, node, emit(reading, node, "narrow", out, -1, offset, width))
        offset += width
