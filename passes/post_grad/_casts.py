"""FP8 casts of one tensor: found by that tensor, checked, and replaced by the forms that one op made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import fx

from loka_compile import compat
from loka_compile.graph.nodes import FLIPS, VIEWS, root, unflip
from loka_compile.graph.splice import splice
from loka_compile.kernels.norms import FLOATS, FP8
from loka_compile.kernels.quantize.quantize import Quantize
from loka_compile.passes.post_grad._padding import PAD


@dataclass(frozen=True)
class Cast:
    """One loka::quantize of a matrix or its transpose.

    axis: -1 for one scale a row of the matrix itself, -2 for one scale a column.
    flipped: the cast reads the matrix's transpose.
    """

    node: fx.Node
    axis: int
    flipped: bool

    @property
    def call(self) -> Quantize:
        return Quantize.of(self.node)

    @property
    def matrix(self) -> fx.Node:
        return unflip(self.call.x)[0]


class Forms(NamedTuple):
    """The values that replace casts: the matrix quantized by rows and by columns, each with its float32 scales."""

    rows: fx.Node
    scale: fx.Node
    columns: fx.Node
    columns_scale: fx.Node


def casts_by_source(graph: fx.Graph) -> dict[fx.Node, list[Cast]]:
    """All quantizations, grouped by the tensor they come from past views, transposes and padding."""
    found: dict[fx.Node, list[Cast]] = {}
    for node in Quantize.calls(graph):
        call = Quantize.of(node)
        matrix, flipped = unflip(call.x)
        cast = Cast(node, -3 - call.axis if flipped else call.axis, flipped)
        found.setdefault(root(matrix, (*VIEWS, PAD)), []).append(cast)
    return found


def check(source: fx.Node, casts: list[Cast], alone: bool) -> str:
    """Why a tensor and its casts stay apart; "" if one op can make all of them. alone: no other node may read the
    tensor."""
    if (dtype := source.meta["val"].dtype) not in FLOATS:
        return f"the tensor is {dtype}; the op reads bfloat16, float16 and float32"
    for cast in casts:
        if cast.call.dtype not in FP8 or cast.call.scaling != "row":
            return f"it is quantized to {cast.call.dtype} by {cast.call.scaling}; expected FP8 by row"
        shape = cast.matrix.meta["val"].shape
        if cast.matrix.target is PAD:
            return f"it is padded to {tuple(shape)} with zeros, which the op does not write"
        columns = source.meta["val"].shape[-1]
        if len(shape) != 2 or not compat.guard_free(shape[1] == columns):
            return f"a view of shape {tuple(shape)} is quantized; expected a matrix of whole rows of {columns} values"
    dtypes = sorted({str(cast.call.dtype) for cast in casts})
    if len(dtypes) > 1:
        return f"it is quantized to {' and to '.join(dtypes)}; the op writes one dtype"
    others = sorted({node.name for node in _readers(source)} - {cast.node.name for cast in casts})
    if others and alone:
        return f"its result is also read by {', '.join(others[:3])}"
    return ""


def _readers(source: fx.Node) -> Iterator[fx.Node]:
    """The nodes that read a tensor, past views and transposes."""
    for user in source.users:
        if user.target in (*VIEWS, *FLIPS):
            yield from _readers(user)
        else:
            yield user


def replace_casts(casts: list[Cast], made: Forms) -> None:
    """Let the forms stand for the casts. A transpose that reads a form is made anew: later passes ask for its strides,
    and those of the old transpose are wrong for the new form."""
    for cast in casts:
        by_columns = cast.axis == -2
        for name, form in (("q", made[2 * by_columns]), ("scale", made[2 * by_columns + 1])):
            for user in Quantize.taken(cast.node, name):
                flips = [each for each in user.users if unflip(each)[1]]
                for each in (user, *flips):
                    transposed = cast.flipped != (each is not user)
                    each.replace_all_uses_with(_transposed(form, cast.node) if transposed else form)


def _transposed(value: fx.Node, before: fx.Node) -> Any:
    """The transpose of `value`; if `value` is a transpose itself, what it is a transpose of."""
    matrix, flipped = unflip(value)
    return matrix if flipped else splice(before, torch.t, [value])
