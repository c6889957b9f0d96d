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
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, fx

from loka_compile import compat
from loka_compile.graph.epilogue import VIEWS
from loka_compile.graph.sites import module_name, root, unflip
from loka_compile.graph.splice import hand_over, put, splice, splice_call
from loka_compile.kernels.gemm.scaled_gemm import ScaledGemm
from loka_compile.kernels.gemm_norm.epilogue import GemmNorm
from loka_compile.kernels.norm_quantize.norm_quantize import NormQuantize
from loka_compile.kernels.norm_quantize.norm_quantize_backward import Gradients, NormQuantizeBackward
from loka_compile.kernels.norm_quantize.norm_quantize_both import NormQuantizeBoth
from loka_compile.kernels.norms import FLOATS, FP8
from loka_compile.kernels.quantize.quantize import Quantize
from loka_compile.kernels.quantize.triton_quantize import TritonQuantize
from loka_compile.passes.base import Context, PassResult, Reject, Rewrite, rejected
from loka_compile.passes.post_grad.lower import PAD, one_pass_less

aten = torch.ops.aten
FLIPS = (aten.permute.default, aten.t.default, aten.transpose.int)
PRODUCTS = (aten.mm.default, aten.bmm.default, aten.addmm.default)


@dataclass(frozen=True)
class Cast:
    """A quantization of a matrix: along its own axis `axis`, -1 for one scale a row. flipped: of its transpose."""

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
    """What casts are replaced by: a matrix by rows with its scales, and by columns."""

    rows: fx.Node
    scale: fx.Node
    columns: fx.Node
    columns_scale: fx.Node


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
    for node in Quantize.calls(graph):
        call = Quantize.of(node)
        matrix, flipped = unflip(call.x)
        cast = Cast(node, -3 - call.axis if flipped else call.axis, flipped)
        found.setdefault(root(matrix, (*VIEWS, PAD)), []).append(cast)
    return found


def _is_gradient(source: fx.Node) -> bool:
    """x's gradient, wide. One that is point by point and sums nothing Inductor casts on the way."""
    made = NormQuantizeBackward.made(source, "out")
    if made is None:
        return False
    gradient = NormQuantizeBackward.of(made)
    return gradient.dtype in FLOATS and (gradient.norm != "none" or one_pass_less(gradient))


def check(source: fx.Node, casts: list[Cast], alone: bool) -> str:
    """Why a tensor and its casts stay apart; empty if they become one. alone: nobody else may read it."""
    if (dtype := source.meta["val"].dtype) not in FLOATS:
        return f"it is {dtype}, and the op reads bfloat16, float16 and float32"
    for cast in casts:
        if cast.call.dtype not in FP8 or cast.call.scaling != "row":
            return f"it is quantized to {cast.call.dtype} by {cast.call.scaling}, not to FP8 by row"
        shape = cast.matrix.meta["val"].shape
        if cast.matrix.target is PAD:
            return f"it is padded to {tuple(shape)} with zeros, which the op does not write"
        if len(shape) != 2 or not compat.guard_free(shape[1] == source.meta["val"].shape[-1]):
            return f"rows have {source.meta['val'].shape[-1]} values, but a view of shape {tuple(shape)} is quantized"
    dtypes = sorted({str(cast.call.dtype) for cast in casts})
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
    gradient = source.all_input_nodes[0]
    if reason := check(source, casts, alone=True):
        return rejected(gradient, reason)
    copied = any(cast.axis == -2 for cast in casts)
    call = replace(NormQuantizeBackward.of(gradient), dtype=casts[0].call.dtype, copied=copied)
    made = Gradients(*splice_call(gradient, call, _with_columns))
    hand_over(gradient, made)
    _replace(casts, Forms(made.out, made.scale, made.copy, made.copy_scale))
    return Rewrite(module_name(gradient), "quantized" + " by rows and, transposed, by columns" * copied)


def _with_columns(call: NormQuantizeBackward[Tensor]) -> Gradients[Tensor]:
    """The copy, where there is one, as the matrix by columns that it is the transpose of."""
    made = call()
    return made._replace(copy=made.copy.t(), copy_scale=made.copy_scale.t()) if call.copied else made


def _replace(casts: list[Cast], made: Forms) -> None:
    """A transpose that reads a form is put in anew: what is traced later asks its strides, which are others than they
    were."""
    for cast in casts:
        by_columns = cast.axis == -2
        for name, form in (("q", made[2 * by_columns]), ("scale", made[2 * by_columns + 1])):
            for user in Quantize.taken(cast.node, name):
                flips = [each for each in user.users if unflip(each)[1]]
                for each in (user, *flips):
                    transposed = cast.flipped != (each is not user)
                    each.replace_all_uses_with(_transposed(form, cast.node) if transposed else form)


def _transposed(value: fx.Node, before: fx.Node) -> Any:
    matrix, flipped = unflip(value)
    return matrix if flipped else splice(before, torch.t, [value])


# ---------------------------------------------------------------- a norm's result, a tensor that is in memory


def _is_norm(source: fx.Node) -> bool:
    made = NormQuantize.made(source, "out")
    norm = NormQuantize.of(made) if made is not None else None
    return norm is not None and norm.row.dtype in FLOATS and norm.given is None


def _norm(source: fx.Node, casts: list[Cast]) -> Rewrite | Reject | None:
    """Where others read the result it is in memory in any case."""
    if {cast.axis for cast in casts} != {-1, -2}:
        return None
    norm = source.all_input_nodes[0]
    if reason := check(source, casts, alone=True):
        return _tensor(source, casts) or rejected(norm, reason)
    call = NormQuantize.of(norm)
    call = replace(call, row=replace(call.row, dtype=casts[0].call.dtype))
    *forms, statistics = splice_call(norm, call, _both_ways)
    for user in NormQuantize.taken(norm, "statistics"):
        user.replace_all_uses_with(statistics)
    _replace(casts, Forms(*forms))
    return Rewrite(module_name(norm), "with its activation, quantized by rows and, transposed, by columns")


def _both_ways(call: NormQuantize[Tensor]) -> tuple[Tensor, ...]:
    """Rows, their scales, columns, their scales, and statistics as the norm has them."""
    made = NormQuantizeBoth(call.x.reshape(-1, call.x.shape[-1]), call.weight, call.bias, call.row)()
    columns, columns_scale = made.copy.t(), made.copy_scale.t()
    statistics = made.statistics.reshape(*call.x.shape[:-1], made.statistics.shape[-1])
    return made.out, made.scale, columns, columns_scale, statistics


def _tensor(source: fx.Node, casts: list[Cast]) -> Rewrite | Reject | None:
    if {cast.axis for cast in casts} != {-1, -2} or not _in_memory(source):
        return None
    if reason := check(source, casts, alone=False):
        return rejected(source, reason)
    first = casts[0]
    _replace(casts, Forms(*put(first.node, TritonQuantize(first.matrix, first.call.dtype, "row", both=True))))
    return Rewrite(source.name, "quantized by rows and, transposed, by columns in one op")


def _in_memory(source: fx.Node) -> bool:
    """Whether the tensor is written in any case: Inductor would cast anything else on the way."""
    if source.op == "placeholder" or source.target in PRODUCTS or ScaledGemm.matches(source):
        return True
    norm = NormQuantize.made(source)
    return GemmNorm.made(source) is not None or (norm is not None and NormQuantize.of(norm).row.norm != "none")
