"""fuse_cast: what FP8's products read by rows and by columns is quantized by one op, each form as its product reads it.

    norm_quantize_backward (wide) -> quantize by rows      for grad_input
                                  -> quantize by columns   for grad_weight, whose contraction is over the rows
                                         loka::norm_quantize_backward in FP8: nothing wide is written
    norm_quantize (wide) -> both         loka::norm_quantize_both, in the forward: by columns for the backward
    a tensor in memory -> both           loka::triton_quantize by rows, along both axes

The form by columns comes transposed, (N, R), and a view of that goes to the product: FP8 kernels read both operands
along their contraction, so what lies otherwise is copied first. Works on CUDA.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import getitem
from typing import Any, ClassVar

import torch
from torch import fx

from loka_compile import compat
from loka_compile.graph.epilogue import VIEWS
from loka_compile.graph.sites import module_name, root, unflip
from loka_compile.graph.splice import splice
from loka_compile.kernels.norm_quantize import FLOATS, FP8
from loka_compile.kernels.norm_quantize_backward import norm_quantize_backward
from loka_compile.kernels.norm_quantize_both import norm_quantize_both
from loka_compile.kernels.triton_quantize import triton_quantize
from loka_compile.passes.base import Context, PassResult, Reject, Rewrite, rejected
from loka_compile.passes.chain import STATISTICS
from loka_compile.passes.fuse_backward import OUT
from loka_compile.passes.lower import GEMM_NORM, NORM, NORM_BACKWARD, PAD, QUANTIZE, SCALED_GEMM, one_pass_less

aten = torch.ops.aten
FLIPS = (aten.permute.default, aten.t.default, aten.transpose.int)
IN_MEMORY = (aten.mm.default, aten.bmm.default, aten.addmm.default, SCALED_GEMM)
"""Beside graph inputs and the values of loka's ops: what Inductor writes out before it is quantized."""


@dataclass(frozen=True)
class Cast:
    """A quantization of a matrix: along its own axis `axis`, -1 for one scale a row. flipped: of its transpose."""

    node: fx.Node
    axis: int
    flipped: bool


@dataclass(frozen=True)
class FuseCast:
    name: ClassVar[str] = "fuse_cast"
    runs_on: ClassVar[tuple[str, ...]] = ("cuda",)

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        rewrites: list[Rewrite] = []
        rejects: list[Reject] = []
        for source, casts in _sources(graph).items():
            rule = _gradient if _is_gradient(source) else _norm if _is_norm(source) else _tensor
            done = rule(source, casts)
            if isinstance(done, Rewrite):
                rewrites.append(done)
            elif done is not None:
                rejects.append(done)
        if rewrites:
            graph.eliminate_dead_code()
        graph.lint()
        return PassResult(tuple(rewrites), tuple(rejects))


def _sources(graph: fx.Graph) -> dict[fx.Node, list[Cast]]:
    """The quantizations by the tensor they are of, behind views, transposes and zeros that are added."""
    found: dict[fx.Node, list[Cast]] = {}
    for node in graph.find_nodes(op="call_function", target=QUANTIZE):
        matrix, flipped = unflip(node.args[0])
        axis = -3 - node.args[3] if flipped else node.args[3]
        found.setdefault(root(matrix, (*VIEWS, PAD)), []).append(Cast(node, axis, flipped))
    return found


def _is_gradient(source: fx.Node) -> bool:
    """x's gradient, wide. One that is point by point and sums nothing Inductor casts on the way."""
    if source.target is not getitem or source.args[1] != OUT or source.args[0].target is not NORM_BACKWARD:  # type: ignore[union-attr]
        return False
    gradient = source.args[0]
    return gradient.args[8] in FLOATS and (gradient.args[5] != "none" or one_pass_less(gradient))  # type: ignore[union-attr,arg-type]


def check(source: fx.Node, casts: list[Cast], alone: bool) -> str:
    """Why a tensor and its casts stay apart; empty if they become one. alone: nobody else may read it."""
    for cast in casts:
        _, dtype, scaling, _ = cast.node.args
        if dtype not in FP8 or scaling != "row":
            return f"it is quantized to {dtype} by {scaling}, not to FP8 by row"
        matrix = unflip(cast.node.args[0])[0]  # type: ignore[arg-type]
        shape = matrix.meta["val"].shape
        if matrix.target is PAD:
            return f"it is padded to {tuple(shape)}, and the op's copy has no zeros"
        if len(shape) != 2 or not compat.guard_free(shape[1] == source.meta["val"].shape[-1]):
            return f"its rows are of {source.meta['val'].shape[-1]} values, and quantized is a view {tuple(shape)}"
    dtypes = sorted({str(cast.node.args[1]) for cast in casts})
    if len(dtypes) > 1:
        return f"it is quantized to {' and to '.join(dtypes)}"
    others = sorted({node.name for node in _readers(source)} - {cast.node.name for cast in casts})
    if others and alone:
        return f"its result is also read by {', '.join(others[:3])}"
    return ""


def _readers(source: fx.Node) -> Iterator[fx.Node]:
    for user in source.users:
        if user.target in (*VIEWS, *FLIPS):
            yield from _readers(user)
        else:
            yield user


# ---------------------------------------------------------------- the gradient of a norm


def _gradient(source: fx.Node, casts: list[Cast]) -> Rewrite | Reject:
    gradient: fx.Node = source.args[0]  # type: ignore[assignment]
    if reason := check(source, casts, alone=True):
        return rejected(gradient, reason)
    *args, _, _, summed, gain = gradient.args
    dtype, copied = casts[0].node.args[1], any(cast.axis == -2 for cast in casts)

    def fused(*args: Any) -> Any:
        out, scale, copy, copy_scale, *sums = norm_quantize_backward(*args, dtype, copied, summed, gain)  # type: ignore[arg-type]
        return out, scale, *((copy.t(), copy_scale.t()) if copied else (copy, copy_scale)), *sums

    made = splice(gradient, fused, args)
    for user in list(gradient.users):
        if user is not source:
            user.replace_all_uses_with(made[user.args[1]])  # type: ignore[index]
    _hand_over(casts, made)
    return Rewrite(module_name(gradient), "quantized" + " by rows and, transposed, by columns" * copied)


def _hand_over(casts: list[Cast], made: Any) -> None:
    """made: the matrix by rows, its scales, the matrix by columns, its scales.

    A transpose that reads one is put in anew: what is traced later asks its strides, which are others than they were.
    """
    for cast in casts:
        for user in list(cast.node.users):
            value = made[user.args[1] + (2 if cast.axis == -2 else 0)]  # type: ignore[operator]
            flips = [each for each in user.users if unflip(each)[1]]
            for each in (user, *flips):
                transposed = cast.flipped != (each is not user)
                each.replace_all_uses_with(_transposed(value, cast.node) if transposed else value)


def _transposed(value: fx.Node, before: fx.Node) -> Any:
    matrix, flipped = unflip(value)
    return matrix if flipped else splice(before, torch.t, [value])


# ---------------------------------------------------------------- a norm's result, a tensor that is in memory


def _is_norm(source: fx.Node) -> bool:
    maker = source.args[0] if source.target is getitem and source.args[1] == OUT else None
    return isinstance(maker, fx.Node) and maker.target is NORM and maker.args[7] in FLOATS and maker.args[3] is None


def _norm(source: fx.Node, casts: list[Cast]) -> Rewrite | Reject | None:
    """Where others read the result it is in memory in any case."""
    if {cast.axis for cast in casts} != {-1, -2}:
        return None
    norm: fx.Node = source.args[0]  # type: ignore[assignment]
    if reason := check(source, casts, alone=True):
        return _tensor(source, casts) or rejected(norm, reason)
    x, weight, bias, _, *names, _, eps, save = norm.args
    dtype = casts[0].node.args[1]

    def fused(x: Any, weight: Any, bias: Any) -> Any:
        rows = x.reshape(-1, x.shape[-1])
        out, scale, copy, copy_scale, kept = norm_quantize_both(rows, weight, bias, *names, dtype, eps, save)  # type: ignore[arg-type]
        return out, scale, copy.t(), copy_scale.t(), kept.reshape(*x.shape[:-1], kept.shape[-1])

    made = splice(norm, fused, [x, weight, bias])
    for user in list(norm.users):
        if user.args[1] == STATISTICS:
            user.replace_all_uses_with(made[4])
    _hand_over(casts, made)
    return Rewrite(module_name(norm), "with its activation, quantized by rows and, transposed, by columns")


def _tensor(source: fx.Node, casts: list[Cast]) -> Rewrite | Reject | None:
    if {cast.axis for cast in casts} != {-1, -2} or not _in_memory(source):
        return None
    if reason := check(source, casts, alone=False):
        return rejected(source, reason)
    first = casts[0].node
    matrix, _ = unflip(first.args[0])  # type: ignore[arg-type]
    _hand_over(casts, splice(first, triton_quantize, [matrix, first.args[1], "row", True]))
    return Rewrite(source.name, "quantized by rows and, transposed, by columns in one op")


def _in_memory(source: fx.Node) -> bool:
    """Whether the tensor is written in any case: Inductor would cast anything else on the way."""
    if source.op == "placeholder" or source.target in IN_MEMORY:
        return True
    maker = source.args[0] if source.target is getitem else None
    if not isinstance(maker, fx.Node):
        return False
    return maker.target is GEMM_NORM or (maker.target is NORM and maker.args[4] != "none")
