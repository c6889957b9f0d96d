"""fuse: a GEMM, its bias, the norm of its output, the activation and the quantization become one op.

    scaled_gemm -> (bias) -> (norm, activation) -> (quantize by rows)    loka::gemm_norm, where the plan has its kernel
    norm, activation -> quantize by rows                                 loka::norm_quantize, where no GEMM is before

Norms and activations are those that raise_norms made one op of. Each removes a pass over memory, or two, and a launch.
Works on CUDA; on a CPU, and where a plan is judged by emulation, Inductor fuses what is written out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import getitem
from typing import Any

import torch
from torch import fx

from loka_compile import compat
from loka_compile.graph.sites import SITE_META, module_name
from loka_compile.graph.splice import splice
from loka_compile.kernels.gemm_norm import gemm_norm
from loka_compile.kernels.gemm_norm_launch import WIDEST, needs_two
from loka_compile.kernels.norm_quantize import FLOATS, FP8, norm_quantize
from loka_compile.passes.base import Context, PassResult, Reject, Rewrite
from loka_compile.passes.lower import NORM, PAD, QUANTIZE, SCALED_GEMM

FUSING = ("triton",)
"""Providers whose GEMM has an epilogue for all this."""
ALIGNED = 16
aten = torch.ops.aten
VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
ALONE = (aten.mm.default, aten.bmm.default, aten.addmm.default, SCALED_GEMM, *VIEWS)
"""What Inductor does not fuse with the norm that reads it."""
NARROWED = aten.slice.Tensor
"""How passes/precision.py leaves out of a product the columns that were padded."""


@dataclass(frozen=True)
class Fuse:
    name: str = "fuse"

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        rewrites: list[Rewrite] = []
        rejects: list[Reject] = []
        if context.device == "cuda":
            for node in graph.find_nodes(op="call_function", target=SCALED_GEMM):
                _gemm(node, rewrites, rejects)
            if rewrites:
                graph.eliminate_dead_code()  # what was fused is not looked at again
            for node in graph.find_nodes(op="call_function", target=QUANTIZE):
                _norm(node, rewrites, rejects)
        if rewrites:
            graph.eliminate_dead_code()
        graph.lint()
        return PassResult(tuple(rewrites), tuple(rejects))


@dataclass(frozen=True)
class Chain:
    """From a product to `last`, each read by the next alone. norm: a loka::norm_quantize node; quantize: of its result.

    stopped: why the chain ends where a norm or a quantization would have followed."""

    gemm: fx.Node
    last: fx.Node
    bias: fx.Node | None = None
    norm: fx.Node | None = None
    quantize: fx.Node | None = None
    stopped: str = ""


def pattern(gemm: fx.Node) -> Chain:
    """What follows the product, as far as an epilogue could do it."""
    chain = Chain(gemm, gemm)
    for user in gemm.users:
        if user.target is NARROWED:
            n, padded = user.meta["val"].shape[-1], gemm.meta["val"].shape[-1]
            return replace(chain, stopped=f"N is padded, {n} -> {padded}: an epilogue would see the zeros")
    while chain.quantize is None:
        users = list(chain.last.users)
        wanted = [user for user in users if _what(user, chain)]
        if len(users) != 1 or not wanted:
            others = [user.name for user in users if user not in wanted]
            stopped = f"{chain.last.name} is also read by {', '.join(others[:3])}" if wanted and others else ""
            return replace(chain, stopped=stopped)
        chain = _extended(chain, users[0])
    return chain


def _what(user: fx.Node, chain: Chain) -> str:
    """bias, view, norm, quantize: what a user of the chain's value is; "" if it is nothing of an epilogue."""
    made = chain.last.meta["val"]
    if user.target is aten.add.Tensor and chain.norm is None and chain.bias is None and not user.kwargs:
        vector = _other(user, chain.last)
        shape = vector.meta["val"].shape if isinstance(vector, fx.Node) else ()
        return "bias" if len(shape) == 1 and compat.guard_free(shape[0] == made.shape[-1]) else ""
    if user.target in VIEWS and compat.guard_free(user.meta["val"].shape[-1] == made.shape[-1]):
        return "view"
    if user.target is NORM and chain.norm is None and user.args[0] is chain.last and user.args[3] is None:
        return "norm"
    if user.target is QUANTIZE and user.args[1] in FP8 and user.args[2:] == ("row", -1) and made.dim() == 2:
        return "quantize"
    return ""


def _extended(chain: Chain, user: fx.Node) -> Chain:
    what = _what(user, chain)
    if what == "bias":
        return replace(chain, last=user, bias=_other(user, chain.last))
    if what == "norm":
        return replace(chain, last=_output(user, 0), norm=user)
    return replace(chain, last=user, quantize=user if what == "quantize" else None)


def _other(add: fx.Node, one: fx.Node) -> Any:
    return add.args[1] if add.args[0] is one else add.args[0]


def _output(node: fx.Node, index: int) -> fx.Node:
    """A value of an op with several."""
    for user in node.users:
        if user.target is getitem and user.args[1] == index:
            return user
    raise ValueError(f"{node.name} has no value {index} that is used")


def check(chain: Chain) -> str:
    """Why the chain stays in pieces; empty if it becomes one op."""
    a, a_scale, b, b_scale, _, provider = chain.gemm.args
    (_, k), n = a.meta["val"].shape[-2:], b.meta["val"].shape[-1]  # type: ignore[union-attr]
    left = a.meta["val"]  # type: ignore[union-attr]
    if provider not in FUSING:
        return f"{provider}'s kernel has no epilogue for it"
    if left.dim() != 2:
        return f"the product is of a batch, of shape {tuple(left.shape)}"
    if left.dtype not in (*FP8, torch.bfloat16, torch.float16):
        return f"the operands are {left.dtype}"
    for name, size in (("K", k), ("N", n)):
        if not isinstance(size, int) or size % ALIGNED:
            return f"{name} = {size} is no multiple of {ALIGNED}"
    if a_scale is not None and a_scale.meta["val"].dim() != 2:  # type: ignore[union-attr]
        return "its operands have one scale each, and the epilogue wants one a row"
    if b_scale is not None and tuple(b_scale.meta["val"].shape) != (1, n):  # type: ignore[union-attr]
        return "its weight is scaled by blocks"
    kind, block = (chain.norm.args[4], chain.norm.args[5]) if chain.norm is not None else ("none", 0)
    if needs_two(n, kind, block, chain.quantize is not None):  # type: ignore[arg-type]
        what = "a norm" if needs_two(n, kind, block, False) else "the scale"  # type: ignore[arg-type]
        return f"N = {n}: {what} of whole rows wants them in one tile, of at most {WIDEST} columns"
    return ""


def _gemm(gemm: fx.Node, rewrites: list[Rewrite], rejects: list[Reject]) -> None:
    chain, key = pattern(gemm), gemm.meta[SITE_META].key
    if chain.last is gemm:
        if chain.stopped:
            rejects.append(Reject(key, chain.stopped))
        return
    reason, shorter = check(chain), chain
    if reason:
        rejects.append(Reject(key, reason))
    while reason and (shorter := _shorter(shorter)) is not None:  # type: ignore[assignment]
        chain, reason = shorter, check(shorter)
    if reason:
        return
    if chain.stopped:
        rejects.append(Reject(key, chain.stopped))
    _rewrite(chain)
    rewrites.append(Rewrite(key, f"with {_names(chain)} in its epilogue"))


def _shorter(chain: Chain) -> Chain | None:
    """Without the quantization; without the norm too, where there is a bias."""
    if chain.quantize is not None and (chain.norm is not None or chain.bias is not None):
        return replace(chain, quantize=None, last=chain.quantize.args[0])  # type: ignore[arg-type]
    if chain.norm is not None and chain.bias is not None:
        return replace(chain, norm=None, last=chain.norm.args[0])  # type: ignore[arg-type]
    return None


def _names(chain: Chain) -> str:
    norm = [chain.norm.args[4], chain.norm.args[6]] if chain.norm is not None else []
    parts = ["bias"] * (chain.bias is not None) + [each for each in norm if each != "none"]  # type: ignore[misc]
    return ", ".join([*parts, *["quantization"] * (chain.quantize is not None)])


def _rewrite(chain: Chain) -> None:
    gemm, last = chain.gemm, chain.last
    a, a_scale, b, b_scale, out_dtype, _ = gemm.args
    weight, shift, norm, block, activation, dtype, eps = None, None, "none", 0, "none", out_dtype, 0.0
    if chain.norm is not None:
        _, weight, shift, _, norm, block, activation, dtype, eps, _ = chain.norm.args  # type: ignore[assignment]
    if chain.quantize is not None:
        dtype = chain.quantize.args[1]  # type: ignore[assignment]

    def fused(a: Any, a_scale: Any, b: Any, b_scale: Any, bias: Any, weight: Any, shift: Any) -> Any:
        scale = None if b_scale is None else b_scale.reshape(-1, 1)
        vectors = bias, weight, shift, None
        made = gemm_norm(a, a_scale, b.mT, scale, *vectors, norm, block, activation, dtype, eps, False)
        return made[:2] if chain.quantize is not None else made[0]

    args = [a, a_scale, b, b_scale, chain.bias, weight, shift]
    made = splice(last, fused, args, **{SITE_META: gemm.meta[SITE_META]})
    if chain.quantize is not None:
        _hand_over(chain.quantize, made)
        return
    if last.meta["val"].dim() != 2:
        made = _viewed_as(made, last)
    last.replace_all_uses_with(made)


def _viewed_as(made: fx.Node, last: fx.Node) -> fx.Node:
    """The result in the shape that the last view gave."""
    view = last
    while view.target not in VIEWS:
        view = view.args[0]  # type: ignore[assignment]
    with last.graph.inserting_before(last):
        new = last.graph.call_function(aten.reshape.default, (made, view.args[1]))
    new.meta = dict(last.meta)
    return new


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
        rejects.append(Reject(module_name(norm), reason))  # type: ignore[arg-type]
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
