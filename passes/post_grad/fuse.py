"""fuse: a GEMM, its bias, the norm of its output, the activation and the quantization become one op.

    scaled_gemm -> (bias, residual) -> (norm, activation) -> (quantize by rows)
                                         loka::gemm_norm, if the plan runs the product in a provider with an epilogue
    norm, activation -> quantize by rows
                                         loka::norm_quantize, if no GEMM comes before the norm

The trick: a program that holds a whole row of the product in registers has all that the row's norm and scale need. Each
part that is fused saves a launch and one or two passes over memory. If others read the norm's input too (a backward,
the next residual), the kernel writes that input beside the result.

Norms and activations are those that raise_norms made one op of. It works on CUDA; on a CPU, Inductor fuses what `lower`
writes out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import getitem
from typing import ClassVar

import torch
from torch import Tensor, fx

from loka_compile.graph.nodes import VIEWS
from loka_compile.graph.sites import SITE_META, in_place_of_gemms, module_name
from loka_compile.graph.splice import hand_over, splice, splice_call
from loka_compile.kernels.gemm.scaled_gemm import ScaledGemm
from loka_compile.kernels.gemm_norm.epilogue import Epilogue, Fused, GemmNorm
from loka_compile.kernels.norm_quantize.norm_quantize import NormQuantize
from loka_compile.kernels.norms import FLOATS, FP8, RowNorm
from loka_compile.kernels.quantize.quantize import Quantize
from loka_compile.passes.base import Context, PassResult, Reject, Rewrite, rejected
from loka_compile.passes.post_grad._chain import Chain, check, pattern, shorter
from loka_compile.passes.post_grad._padding import PAD

aten = torch.ops.aten
ALONE = (aten.mm.default, aten.bmm.default, aten.addmm.default, *VIEWS)
"""Library products and views: Inductor cannot fuse a norm that reads their result with them."""


@dataclass(frozen=True)
class Fuse:
    name: ClassVar[str] = "fuse"
    runs_on: ClassVar[tuple[str, ...]] = ("cuda",)

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        rewrites: list[Rewrite] = []
        rejects: list[Reject] = []
        for node in in_place_of_gemms(graph, ScaledGemm.target()):
            _gemm(node, rewrites, rejects)
        if rewrites:
            graph.eliminate_dead_code()  # nodes that were fused must not match below
        for node in Quantize.calls(graph):
            _norm(node, rewrites, rejects)
        if rewrites:
            graph.eliminate_dead_code()
        graph.lint()
        return PassResult(tuple(rewrites), tuple(rejects))


def _gemm(gemm: fx.Node, rewrites: list[Rewrite], rejects: list[Reject]) -> None:
    """Fuse the longest part of the product's chain that the kernel can run; refuse what is left out."""
    chain, key = pattern(gemm), gemm.meta[SITE_META].key
    if chain.last is gemm:
        if chain.stopped:
            rejects.append(rejected(gemm, chain.stopped))
        return
    reason = check(chain)
    if reason:
        rejects.append(rejected(gemm, reason))
    while reason and (less := shorter(chain)) is not None:
        chain, reason = less, check(less)
    if reason:
        return
    if chain.stopped:
        rejects.append(rejected(gemm, chain.stopped))
    rewrites.append(Rewrite(key, _names(chain)))
    _rewrite(chain)


def _names(chain: Chain) -> str:
    """The sentence for the record: the parts that are now in the epilogue."""
    norm = NormQuantize.of(chain.norm) if chain.norm is not None else None
    added = ["bias"] * (chain.bias is not None) + ["residual"] * (chain.residual is not None)
    named = (norm.row.norm, norm.row.activation) if norm is not None else ()
    parts = [*added, *(each for each in named if each != "none")]
    parts += ["quantization"] * (chain.quantize is not None)
    return f"with {', '.join(parts)} in its epilogue" + ", the product written too" * chain.kept


def _rewrite(chain: Chain) -> None:
    """Put the fused op in place of the chain."""
    gemm, last = chain.gemm, chain.last
    call = fused_call(chain)
    at = chain.sums[0] if chain.kept else last  # others may read the product before the norm does
    made = Fused(*splice_call(at, call, _of_matrices, **{SITE_META: gemm.meta[SITE_META]}))
    if chain.quantize is not None:
        hand_over(chain.quantize, (made.out, made.scale))
    else:
        last.replace_all_uses_with(_viewed_as(made.out, last, chain))
    if chain.norm is not None and chain.kept:
        for user in NormQuantize.taken(chain.norm, "statistics"):
            user.replace_all_uses_with(_of_rows(made.statistics, chain.norm))
        at.replace_all_uses_with(_viewed_as(made.product, at, chain))


def fused_call(chain: Chain) -> GemmNorm:
    """The chain as one op; its right operand, scale and residual still have the shapes they have in the graph."""
    gemm = ScaledGemm.of(chain.gemm)
    plain = RowNorm("none", 0, "none", gemm.out_dtype, 0.0, chain.kept)
    epilogue = Epilogue(chain.bias, chain.residual, None, None, None, plain)
    if chain.norm is not None:
        norm = NormQuantize.of(chain.norm)
        row = replace(norm.row, save=chain.kept)
        epilogue = replace(epilogue, weight=norm.weight, shift=norm.bias, row=row)
    if chain.quantize is not None:
        epilogue = replace(epilogue, row=replace(epilogue.row, dtype=Quantize.of(chain.quantize).dtype))
    return GemmNorm(gemm.a, gemm.a_scale, gemm.b, gemm.b_scale, epilogue)


def _of_matrices(call: GemmNorm[Tensor]) -> Fused[Tensor]:
    """The op's outputs for operands as the kernel takes them: weight (N, K), its scale (N, 1), residual (M, N)."""
    residual, scale = call.epilogue.residual, call.b_scale
    scale = None if scale is None else scale.reshape(-1, 1)
    rows = None if residual is None else residual.reshape(-1, residual.shape[-1])
    return replace(call, b=call.b.mT, b_scale=scale, epilogue=replace(call.epilogue, residual=rows))()


def _viewed_as(made: fx.Node, node: fx.Node, chain: Chain) -> fx.Node:
    """`made` (M, N) in the shape of `node`, taken from the last view in the chain before it."""
    if node.meta["val"].dim() == 2:
        return made
    view = [each for each in chain.path[: chain.path.index(node) + 1] if each.target in VIEWS][-1]
    with node.graph.inserting_before(node):
        new = node.graph.call_function(aten.reshape.default, (made, view.args[1]))
    new.meta = dict(node.meta)
    return new


def _of_rows(statistics: fx.Node, norm: fx.Node) -> fx.Node:
    """Statistics (M, C) in the shape of the norm's rows, (..., C)."""
    x = NormQuantize.of(norm).x
    if x.meta["val"].dim() == 2:
        return statistics
    rows: fx.Node = splice(norm, lambda s, x: s.reshape(*x.shape[:-1], s.shape[-1]), [statistics, x])
    return rows


# ---------------------------------------------------------------- without a GEMM


def _norm(quantize: fx.Node, rewrites: list[Rewrite], rejects: list[Reject]) -> None:
    """Replace norm_quantize to a wide dtype and the quantization of its result by one norm_quantize to FP8."""
    cast = Quantize.of(quantize)
    padding = cast.x if cast.x.target is PAD else None
    value, views = padding.all_input_nodes[0] if padding is not None else cast.x, []
    while value.target in VIEWS:
        views.append(value)
        value = value.all_input_nodes[0]
    norm = NormQuantize.made(value, "out")
    if norm is None:
        return
    reason = check_norm(norm, quantize, [value, *views])
    if padding is not None:
        reason = f"the norm's result is padded to {padding.meta['val'].shape[-1]} columns"
    if reason:
        rejects.append(rejected(norm, reason))
        return
    call = NormQuantize.of(norm)
    call = replace(call, row=replace(call.row, dtype=cast.dtype, save=False))
    hand_over(quantize, splice_call(quantize, call, _quantized_rows))
    rewrites.append(Rewrite(module_name(norm), "norm, activation and quantization in one pass"))


def _quantized_rows(call: NormQuantize[Tensor]) -> tuple[Tensor, Tensor]:
    made = replace(call, x=call.x.reshape(-1, call.x.shape[-1]))()
    return made.out, made.scale


def check_norm(norm: fx.Node, quantize: fx.Node, values: list[fx.Node]) -> str:
    """Why a norm and a quantization stay two ops; "" if they become one."""
    cast, call = Quantize.of(quantize), NormQuantize.of(norm)
    x, dtype, scaling, axis = call.x, cast.dtype, cast.scaling, cast.axis
    others = [user.name for value in values for user in value.users if user not in (quantize, *values)]
    if dtype not in FP8 or (scaling, axis) != ("row", -1):
        return f"the norm's result is quantized to {dtype} by {scaling} along {axis}; expected FP8 by row along -1"
    if others:
        return f"the norm's result is also read by {', '.join(others[:3])}"
    matrix = cast.x.meta["val"]
    if values[0].meta["val"].dtype not in FLOATS or matrix.dim() != 2:
        return f"the quantized value has shape {tuple(matrix.shape)}; expected a matrix of floats"
    library = x.op == "placeholder" or x.target in ALONE or x.target is getitem or ScaledGemm.matches(x)
    if not library or call.given is not None:
        return f"Inductor fuses the norm with its input {x.name}"
    return ""
