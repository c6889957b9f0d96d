"""raise_fm: Wukong's factorization machine and the norm after it become loka::fm, one kernel.

    norm(flatten(x (x^T y)))      or (x x^T) y; with or without the norm; x (B, N, D), y (N, K) or (B, N, K)

Three kernels become one, and two intermediate results are never written. A program must hold a sample's tokens: N <=
64. It works on CUDA, in 16 bits and in inference: a gradient would need the products, which the op would compute again.
Source: Wukong (arXiv 2403.02545); KernelEvolve (arXiv 2512.23236, 5.3) for where fusing pays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from torch import fx

from loka_compile.graph import edit
from loka_compile.graph.edit import emit
from loka_compile.graph.facts import Reading
from loka_compile.graph.sites import module_name
from loka_compile.graph.sizes import same_sizes
from loka_compile.kernels.fm.fm import Fm, reasons_against
from loka_compile.passes.base import Context, PassResult, Rewrite, apply
from loka_compile.passes.raising._norms import NORMS, Norm, norm_of


@dataclass(frozen=True)
class RaiseFm:
    name: ClassVar[str] = "raise_fm"
    runs_on: ClassVar[tuple[str, ...]] = ("cuda",)

    def __call__(self, reading: Reading, context: Context) -> PassResult:
        rules = partial(pattern, reading), partial(check, reading, context.training), partial(rewrite, reading)
        return apply(reading.graph, reading.graph.nodes, *rules)


@dataclass(frozen=True)
class Interaction:
    """x (x^T y) or (x x^T) y. across: x^T. first: the inner product. last: the outer one, whose value is replaced."""

    x: fx.Node
    y: fx.Node
    across: fx.Node
    first: fx.Node
    last: fx.Node


def pattern(reading: Reading, node: fx.Node) -> Interaction | None:
    """The factorization machine whose outer product is this node, in either order."""
    left, right = reading.product(node) or (None, None)
    if left is None:
        return None
    across, y = reading.product(right) or (None, None)
    found = Interaction(left, y, across, right, node)  # x (x^T y)
    if not _is_across(reading, found):
        x, across = reading.product(left) or (None, None)
        found = Interaction(x, right, across, left, node)  # (x x^T) y
    return found if _is_across(reading, found) else None


def _is_across(reading: Reading, found: Interaction) -> bool:
    """Whether `across` is the transpose of x, and x has three dimensions."""
    return found.x is not None and reading.flipped(found.across) is found.x and reading.rank(found.x) == 3


def check(reading: Reading, training: bool, found: Interaction) -> str:
    """Why the products stay as they are; "" if they are raised."""
    x, y = reading.value(found.x), reading.value(found.y)
    if training:
        return "it needs a gradient, which reads results that the kernel does not write"
    sizes = *reading.shape(found.x)[1:], *reading.shape(found.y)[-2:]
    if y.dim() not in (2, 3) or not all(isinstance(size, int) for size in sizes):
        return (
            f"x is {tuple(x.shape)}, y is {tuple(y.shape)}; expected (B, N, D) and (N, K) or (B, N, K), all known but B"
        )
    if len(dtypes := {str(each.dtype) for each in (x, y, reading.value(found.last))}) > 1:
        return f"operands and result are {', '.join(sorted(dtypes))}; the kernel needs one dtype"
    if reasons := reasons_against(x, y):
        return reasons[0]
    if reading.only_user(found.first) is None:
        return f"{found.first.name} is read elsewhere too"
    return reading.reason_against((found.across, found.first, found.last))


def rewrite(reading: Reading, found: Interaction) -> Rewrite:
    last, behind = found.last, norm_behind(reading, found)
    if behind is None:
        call = Fm(found.x, found.y, None, None, "none", 0.0)
        out = emit(reading, last, call.target(), *call.args)
    else:
        last = behind.last
        call = Fm(found.x, found.y, behind.weight, behind.bias, behind.norm, behind.eps)
        out = emit(reading, last, call.target(), *call.args)
        out = emit(reading, last, "flatten", out, 1)
    did = "one op: factorization machine" + (f", {behind.norm} norm" if behind else "")
    return Rewrite(module_name(edit.replace(reading, last, out)), did)


def norm_behind(reading: Reading, found: Interaction) -> Norm | None:
    """The norm over all of a sample's values, if the flattened product is read by nothing else. block_norm with one
    block counts."""
    flat = reading.only_user(found.last)
    if reading.op(flat) not in ("flatten", "reshape", "view") or reading.rank(flat) != 2:
        return None
    n, k = reading.shape(found.last)[1:]
    inner = reading.only_user(flat)
    blocked = reading.op(inner) == "unflatten" and same_sizes(reading.shape(inner)[1:], (1, n * k))
    x = inner if blocked else flat
    node = reading.only_user(x)
    if reading.op(node) not in NORMS:
        return None
    norm = norm_of(reading, node)
    if norm.x is not x or norm.shape != (n * k,):
        return None
    if blocked:
        outer = reading.only_user(node)
        if reading.op(outer) != "flatten" or not same_sizes(reading.shape(outer), reading.shape(flat)):
            return None
        norm = replace(norm, nodes=(node, inner, outer))
    reason = reading.reason_against((found.across, found.first, found.last, flat, *norm.nodes))
    return None if reason or reading.value(norm.last).dtype != reading.value(found.x).dtype else norm
