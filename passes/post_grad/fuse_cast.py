"""fuse_cast: a tensor that FP8 products read by rows and by columns is quantized both ways by one op.

    norm_quantize_backward (wide) -> quantize by rows      for grad_input
                                  -> quantize by columns   for grad_weight, which contracts over the rows
                                         loka::norm_quantize_backward in FP8: nothing wide is written
    norm_quantize (wide) -> both         loka::norm_quantize_both, in the forward: by columns for the backward
    a tensor in memory -> both           loka::triton_quantize by rows, along both axes

FP8 kernels read both operands along their contraction, so an operand that lies otherwise would be copied first. The
trick: the form by columns is written transposed, as (N, R); the product gets a view of it and nothing is copied. It
works on CUDA.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, fx

from loka_compile.graph.sites import module_name
from loka_compile.graph.splice import hand_over, put, splice_call
from loka_compile.kernels.gemm.scaled_gemm import ScaledGemm
from loka_compile.kernels.gemm_norm.epilogue import GemmNorm
from loka_compile.kernels.norm_quantize.norm_quantize import NormQuantize
from loka_compile.kernels.norm_quantize.norm_quantize_backward import Gradients, NormQuantizeBackward
from loka_compile.kernels.norm_quantize.norm_quantize_both import NormQuantizeBoth
from loka_compile.kernels.norms import FLOATS
from loka_compile.kernels.quantize.triton_quantize import TritonQuantize
from loka_compile.passes.base import Context, PassResult, Reject, Rewrite, rejected
from loka_compile.passes.post_grad._casts import Cast, Forms, casts_by_source, check, replace_casts
from loka_compile.passes.post_grad._norms import one_pass_less

aten = torch.ops.aten
PRODUCTS = (aten.mm.default, aten.bmm.default, aten.addmm.default)


@dataclass(frozen=True)
class FuseCast:
    name: ClassVar[str] = "fuse_cast"
    runs_on: ClassVar[tuple[str, ...]] = ("cuda",)

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        rewrites: list[Rewrite] = []
        rejects: list[Reject] = []
        for source, casts in casts_by_source(graph).items():
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


def _is_gradient(source: fx.Node) -> bool:
    """Whether the tensor is a norm's gradient in a wide dtype. A gradient that sums nothing and normalizes nothing is
    left out, because Inductor recomputes it inside each cast."""
    made = NormQuantizeBackward.made(source, "out")
    if made is None:
        return False
    gradient = NormQuantizeBackward.of(made)
    return gradient.dtype in FLOATS and (gradient.norm != "none" or one_pass_less(gradient))


# ---------------------------------------------------------------- the gradient of a norm


def _gradient(source: fx.Node, casts: list[Cast]) -> Rewrite | Reject:
    """Let the norm's gradient write the casts instead of the wide tensor."""
    gradient = source.all_input_nodes[0]
    if reason := check(source, casts, alone=True):
        return rejected(gradient, reason)
    copied = any(cast.axis == -2 for cast in casts)
    call = replace(NormQuantizeBackward.of(gradient), dtype=casts[0].call.dtype, copied=copied)
    made = Gradients(*splice_call(gradient, call, _with_columns))
    hand_over(gradient, made)
    replace_casts(casts, Forms(made.out, made.scale, made.copy, made.copy_scale))
    return Rewrite(module_name(gradient), "quantized" + " by rows and, transposed, by columns" * copied)


def _with_columns(call: NormQuantizeBackward[Tensor]) -> Gradients[Tensor]:
    """The op's values, with the transposed copy (N, R) turned back into the form by columns."""
    made = call()
    return made._replace(copy=made.copy.t(), copy_scale=made.copy_scale.t()) if call.copied else made


# ---------------------------------------------------------------- a norm's result, a tensor that is in memory


def _is_norm(source: fx.Node) -> bool:
    """Whether the tensor is a norm's result in a wide dtype."""
    made = NormQuantize.made(source, "out")
    norm = NormQuantize.of(made) if made is not None else None
    return norm is not None and norm.row.dtype in FLOATS and norm.given is None


def _norm(source: fx.Node, casts: list[Cast]) -> Rewrite | Reject | None:
    """Let the norm write the casts instead of its wide result. If others read that result, it is in memory anyway, and
    one op quantizes it from there."""
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
    replace_casts(casts, Forms(*forms))
    return Rewrite(module_name(norm), "with its activation, quantized by rows and, transposed, by columns")


def _both_ways(call: NormQuantize[Tensor]) -> tuple[Tensor, ...]:
    """norm_quantize_both on the norm's rows: (rows, scales, columns, scales, statistics in the norm's own shape)."""
    made = NormQuantizeBoth(call.x.reshape(-1, call.x.shape[-1]), call.weight, call.bias, call.row)()
    columns, columns_scale = made.copy.t(), made.copy_scale.t()
    statistics = made.statistics.reshape(*call.x.shape[:-1], made.statistics.shape[-1])
    return made.out, made.scale, columns, columns_scale, statistics


def _tensor(source: fx.Node, casts: list[Cast]) -> Rewrite | Reject | None:
    """Let one op read a tensor that is in memory and write both casts."""
    if {cast.axis for cast in casts} != {-1, -2} or not _in_memory(source):
        return None
    if reason := check(source, casts, alone=False):
        return rejected(source, reason)
    first = casts[0]
    replace_casts(casts, Forms(*put(first.node, TritonQuantize(first.matrix, first.call.dtype, "row", both=True))))
    return Rewrite(source.name, "quantized by rows and, transposed, by columns in one op")


def _in_memory(source: fx.Node) -> bool:
    """Whether the tensor is written in any case. Inductor would compute any other tensor inside each cast."""
    if source.op == "placeholder" or source.target in PRODUCTS or ScaledGemm.matches(source):
        return True
    norm = NormQuantize.made(source)
    return GemmNorm.made(source) is not None or (norm is not None and NormQuantize.of(norm).row.norm != "none")
