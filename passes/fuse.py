"""fuse: a GEMM, its bias, the norm of its output, the activation and the quantization become one op.

    scaled_gemm -> (bias, residual) -> (norm, activation) -> (quantize by rows)
                                         loka::gemm_norm, where the plan has its kernel
    norm, activation -> quantize by rows
                                         loka::norm_quantize, where no GEMM is before

Norms and activations are those that raise_norms made one op of. Each removes a pass over memory, or two, and a launch.
What a norm reads may be read by others too, by a backward or as the next residual: then the kernel writes it as well.
Works on CUDA; on a CPU, and where a plan is judged by emulation, Inductor fuses what is written out.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import getitem
from typing import Any, ClassVar

import torch
from torch import fx

from loka_compile.graph.epilogue import VIEWS
from loka_compile.graph.sites import SITE_META, in_place_of_gemms, module_name
from loka_compile.graph.splice import splice
from loka_compile.kernels.gemm_norm import gemm_norm
from loka_compile.kernels.norm_quantize import FLOATS, FP8, norm_quantize
from loka_compile.passes.base import Context, PassResult, Reject, Rewrite, rejected
from loka_compile.passes.chain import STATISTICS, Chain, check, pattern, shorter
from loka_compile.passes.lower import NORM, PAD, QUANTIZE, SCALED_GEMM

aten = torch.ops.aten
ALONE = (aten.mm.default, aten.bmm.default, aten.addmm.default, SCALED_GEMM, *VIEWS)
"""What Inductor does not fuse with the norm that reads it."""


@dataclass(frozen=True)
class Fuse:
    name: ClassVar[str] = "fuse"
    runs_on: ClassVar[tuple[str, ...]] = ("cuda",)

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        rewrites: list[Rewrite] = []
        rejects: list[Reject] = []
        for node in in_place_of_gemms(graph, SCALED_GEMM):
            _gemm(node, rewrites, rejects)
        if rewrites:
            graph.eliminate_dead_code()  # what was fused is not looked at again
        for node in graph.find_nodes(op="call_function", target=QUANTIZE):
            _norm(node, rewrites, rejects)
        if rewrites:
            graph.eliminate_dead_code()
        graph.lint()
        return PassResult(tuple(rewrites), tuple(rejects))


def _gemm(gemm: fx.Node, rewrites: list[Rewrite], rejects: list[Reject]) -> None:
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
    norm = [chain.norm.args[4], chain.norm.args[6]] if chain.norm is not None else []
    added = ["bias"] * (chain.bias is not None) + ["residual"] * (chain.residual is not None)
    parts = [*added, *(each for each in norm if each != "none")]
    parts += ["quantization"] * (chain.quantize is not None)
    return f"with {', '.join(parts)} in its epilogue" + ", the product written too" * chain.kept  # type: ignore[arg-type]


def _rewrite(chain: Chain) -> None:
    gemm, last = chain.gemm, chain.last
    a, a_scale, b, b_scale, out_dtype, _ = gemm.args
    weight, shift, norm, block, activation, dtype, eps = None, None, "none", 0, "none", out_dtype, 0.0
    if chain.norm is not None:
        _, weight, shift, _, norm, block, activation, dtype, eps, _ = chain.norm.args  # type: ignore[assignment]
    if chain.quantize is not None:
        dtype = chain.quantize.args[1]  # type: ignore[assignment]

    kept = chain.kept

    def fused(a: Any, a_scale: Any, b: Any, b_scale: Any, bias: Any, residual: Any, weight: Any, shift: Any) -> Any:
        scale = None if b_scale is None else b_scale.reshape(-1, 1)
        rows = None if residual is None else residual.reshape(-1, residual.shape[-1])
        rest = bias, rows, weight, shift, None, norm, block, activation, dtype, eps, kept
        return gemm_norm(a, a_scale, b.mT, scale, *rest)

    args = [a, a_scale, b, b_scale, chain.bias, chain.residual, weight, shift]
    at = chain.sums[0] if kept else last  # others may read it before the norm does
    out, scale, statistics, product = splice(at, fused, args, **{SITE_META: gemm.meta[SITE_META]})
    if chain.quantize is not None:
        _hand_over(chain.quantize, (out, scale))
    else:
        last.replace_all_uses_with(_viewed_as(out, last, chain))
    if kept:
        for user in chain.norm.users:  # type: ignore[union-attr]
            if user.args[1] == STATISTICS:
                user.replace_all_uses_with(_of_rows(statistics, chain.norm))  # type: ignore[union-attr,arg-type]
        at.replace_all_uses_with(_viewed_as(product, at, chain))


def _viewed_as(made: fx.Node, node: fx.Node, chain: Chain) -> fx.Node:
    """A matrix in the shape of a node of the chain, which the last view before it gave."""
    if node.meta["val"].dim() == 2:
        return made
    view = [each for each in chain.path[: chain.path.index(node) + 1] if each.target in VIEWS][-1]
    with node.graph.inserting_before(node):
        new = node.graph.call_function(aten.reshape.default, (made, view.args[1]))
    new.meta = dict(node.meta)
    return new


def _of_rows(statistics: fx.Node, norm: fx.Node) -> fx.Node:
    """A matrix's statistics for the rows that a norm reads."""
    x = norm.args[0]
    if x.meta["val"].dim() == 2:  # type: ignore[union-attr]
        return statistics
    return splice(norm, lambda s, x: s.reshape(*x.shape[:-1], s.shape[-1]), [statistics, x])  # type: ignore[no-any-return]


def _hand_over(quantize: fx.Node, made: Any) -> None:
    for user in list(quantize.users):
        user.replace_all_uses_with(made[user.args[1]])  # type: ignore[index]


# ---------------------------------------------------------------- without a GEMM


def _norm(quantize: fx.Node, rewrites: list[Rewrite], rejects: list[Reject]) -> None:
    """loka::norm_quantize to FP8 for one to a wide dtype and the quantization of its result."""
    wide, dtype = quantize.args[:2]
    padding = wide if wide.target is PAD else None  # type: ignore[union-attr]
    value, views = padding.args[0] if padding is not None else wide, []
    while value.target in VIEWS:  # type: ignore[union-attr]
        views.append(value)
        value = value.args[0]  # type: ignore[union-attr,assignment]
    if value.target is not getitem or value.args[0].target is not NORM:  # type: ignore[union-attr]
        return
    norm = value.args[0]  # type: ignore[union-attr]
    reason = check_norm(norm, quantize, [value, *views])  # type: ignore[arg-type,list-item]
    if padding is not None:
        reason = f"its result is padded to {padding.meta['val'].shape[-1]} columns"
    if reason:
        rejects.append(rejected(norm, reason))  # type: ignore[arg-type]
        return
    x, weight, bias, _, kind, block, activation, _, eps, _ = norm.args  # type: ignore[union-attr]

    def fused(x: Any, weight: Any, bias: Any) -> Any:
        rows = x.reshape(-1, x.shape[-1])
        return norm_quantize(rows, weight, bias, None, kind, block, activation, dtype, eps, False)[:2]

    _hand_over(quantize, splice(quantize, fused, [x, weight, bias]))
    rewrites.append(Rewrite(module_name(norm), "norm, activation and quantization in one pass"))  # type: ignore[arg-type]


def check_norm(norm: fx.Node, quantize: fx.Node, values: list[fx.Node]) -> str:
    """Why a norm and a quantization stay two; empty if they become one."""
    _, dtype, scaling, axis = quantize.args
    x = norm.args[0]
    others = [user.name for value in values for user in value.users if user not in (quantize, *values)]
    if dtype not in FP8 or (scaling, axis) != ("row", -1):
        return f"it is quantized to {dtype} by {scaling} along {axis}, not to FP8 by row along -1"
    if others:
        return f"its result is also read by {', '.join(others[:3])}"
    if values[0].meta["val"].dtype not in FLOATS or quantize.args[0].meta["val"].dim() != 2:  # type: ignore[union-attr]
        return f"it is no matrix of floats, but of shape {tuple(quantize.args[0].meta['val'].shape)}"  # type: ignore[union-attr]
    library = x.op == "placeholder" or x.target in ALONE or x.target is getitem  # type: ignore[union-attr]
    if not library or norm.args[3] is not None:
        return f"Inductor fuses it with {x.name}, which it reads"  # type: ignore[union-attr]
    return ""
