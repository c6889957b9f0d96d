"""fuse_backward: the gradient of a norm and its activation, with what stands before and behind it.

    norm_quantize_backward -> sum over rows      the gradient of a bias before the norm: one of the op's own sums
    scaled_gemm -> norm_quantize_backward        of a ReLU alone: loka::gemm_gradient, where the plan has its kernel
    scaled_gemm beside a sum over rows           of a gradient, for weight and bias: loka::grad_weight, where it has

Norms and activations are those that raise_norms made one op of. Works on CUDA.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import getitem
from typing import ClassVar

import torch
from torch import fx

from loka_compile.graph.epilogue import VIEWS, past_views, sum_beside, sums_rows
from loka_compile.graph.sites import SITE_META, in_place_of_gemms, module_name, root
from loka_compile.graph.splice import splice
from loka_compile.kernels.gemm_gradient import gemm_gradient
from loka_compile.kernels.grad_weight import grad_weight
from loka_compile.kernels.norm_quantize_backward import norm_quantize_backward
from loka_compile.kernels.providers import FUSING
from loka_compile.kernels.triton_gemm import HALVES
from loka_compile.passes.base import Context, PassResult, Reject, Rewrite, rejected
from loka_compile.passes.chain import NARROWED
from loka_compile.passes.lower import NORM_BACKWARD, SCALED_GEMM

aten = torch.ops.aten
LEADING = (*VIEWS, NARROWED, aten.clone.default)
"""From a product to the gradient that takes it, where columns that were padded are left out of it."""
OUT, TOTAL = 0, 6
"""Values of loka::norm_quantize_backward."""


@dataclass(frozen=True)
class FuseBackward:
    name: ClassVar[str] = "fuse_backward"
    runs_on: ClassVar[tuple[str, ...]] = ("cuda",)

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        rewrites: list[Rewrite] = []
        rejects: list[Reject] = []
        for node in graph.find_nodes(op="call_function", target=NORM_BACKWARD):
            _bias(node, rewrites)
        graph.eliminate_dead_code()  # what was rewritten reads nothing any more
        for node in in_place_of_gemms(graph, SCALED_GEMM):
            _gemm(node, rewrites, rejects)
        for node in in_place_of_gemms(graph, SCALED_GEMM):
            _weight(node, rewrites, rejects)
        if rewrites:
            graph.eliminate_dead_code()
        graph.lint()
        return PassResult(tuple(rewrites), tuple(rejects))


def _bias(gradient: fx.Node, rewrites: list[Rewrite]) -> None:
    """The sum of x's gradient over rows becomes the op's own."""
    outs = [user for user in gradient.users if user.target is getitem and user.args[1] == OUT]
    sums = [node for out in outs for node in past_views(out) if sums_rows(node)]
    if not sums:
        return
    *args, _, gain = gradient.args
    made = splice(gradient, lambda *args: norm_quantize_backward(*args, True, gain), args)
    for user in list(gradient.users):
        user.replace_all_uses_with(made[user.args[1]])
    for node in sums:
        total = splice(node, lambda x, shape: x.reshape(shape), [made[TOTAL], list(node.meta["val"].shape)])
        node.replace_all_uses_with(total)
    rewrites.append(Rewrite(module_name(gradient), "sums itself over rows, for the bias before it"))


# ---------------------------------------------------------------- with the product before it


def _gemm(gemm: fx.Node, rewrites: list[Rewrite], rejects: list[Reject]) -> None:
    gradient = pattern(gemm)
    if gradient is None:
        return
    key = gemm.meta[SITE_META].key
    reason = check(gemm, gradient)
    if reason:
        rejects.append(rejected(gemm, reason))
        return
    a, _, b, *_ = gemm.args
    _, x, *_, summed, gain = gradient.args
    made = splice(gradient, gemm_gradient, [a, b, x, gain, summed], **{SITE_META: gemm.meta[SITE_META]})
    values = {OUT: made[0], TOTAL: made[1]}
    for user in list(gradient.users):
        if user.users:
            user.replace_all_uses_with(values[user.args[1]])  # type: ignore[index]
    rewrites.append(Rewrite(key, "with the gradient of the ReLU in its epilogue", "loka.gemm_gradient"))


def pattern(gemm: fx.Node) -> fx.Node | None:
    """The gradient of a norm or an activation that takes the product, as another one's result."""
    todo = [gemm]
    while todo:
        for user in todo.pop().users:
            if user.target in LEADING:
                todo.append(user)
            elif user.target is NORM_BACKWARD and root(user.args[0], LEADING) is gemm:
                return user
    return None


def check(gemm: fx.Node, gradient: fx.Node) -> str:
    """Why product and gradient stay two; empty if they become one."""
    a, a_scale, b, _, _, provider = gemm.args
    grad, x, _, weight, bias, norm, _, activation, dtype, *_ = gradient.args
    value = grad
    while True:  # from the gradient back to the product, each read by one
        others = [user.name for user in value.users if user is not gradient]  # type: ignore[union-attr]
        if len(value.users) > 1:  # type: ignore[union-attr]
            return f"{value.name} is also read by {', '.join(others[:3])}"  # type: ignore[union-attr]
        if value.target is NARROWED:  # type: ignore[union-attr]
            return f"N is padded to {value.args[0].meta['val'].shape[-1]}"  # type: ignore[union-attr]
        if value is gemm:
            break
        value = value.args[0]  # type: ignore[union-attr]
    if provider not in FUSING:
        return f"{provider}'s kernel has no epilogue for it"
    if a_scale is not None or a.meta["val"].dtype not in HALVES:  # type: ignore[union-attr]
        return f"the operands are {a.meta['val'].dtype}, and that kernel multiplies 16 bits"  # type: ignore[union-attr]
    if (norm, activation, weight, bias) != ("none", "relu", None, None):
        return f"it is the gradient of {norm if norm != 'none' else activation}, and the epilogue has that of a ReLU"
    if gemm.meta["val"].dim() != 2 or not b.meta["val"].is_contiguous():  # type: ignore[union-attr]
        return f"the weight lies transposed, or is a batch, of shape {tuple(b.meta['val'].shape)}"  # type: ignore[union-attr]
    if not dtype == x.meta["val"].dtype == a.meta["val"].dtype:  # type: ignore[union-attr]
        return f"it is {dtype}, of a product of {a.meta['val'].dtype}"  # type: ignore[union-attr]
    return ""


# ---------------------------------------------------------------- a weight's and its bias's


def _weight(gemm: fx.Node, rewrites: list[Rewrite], rejects: list[Reject]) -> None:
    total = sum_beside(gemm)
    if total is None:
        return
    site = gemm.meta[SITE_META]
    reason = check_weight(gemm, total)
    if reason:
        rejects.append(rejected(gemm, reason))
        return
    shape = list(total.meta["val"].shape)
    flip, _, x, *_ = gemm.args
    made = splice(gemm, grad_weight, [flip.args[0], x], **{SITE_META: site})  # type: ignore[union-attr]
    gemm.replace_all_uses_with(made[0])
    total.replace_all_uses_with(splice(total, lambda t: t.reshape(shape), [made[1]]))
    rewrites.append(Rewrite(site.key, "with the gradient of the bias", "loka.grad_weight"))


def check_weight(gemm: fx.Node, total: fx.Node) -> str:
    """Why the sum of a gradient stays apart from the product that reads it; empty if they become one."""
    a, _, _, _, out_dtype, provider = gemm.args
    if provider not in FUSING:
        return f"{provider}'s kernel has no sum for the bias"
    if a.meta["val"].dtype not in HALVES or not out_dtype == total.meta["val"].dtype == a.meta["val"].dtype:  # type: ignore[union-attr]
        return f"it is {out_dtype}, of a gradient of {a.meta['val'].dtype}, and that kernel is of 16 bits"  # type: ignore[union-attr]
    if total < gemm:
        return f"{total.name}, for the bias, is read before the product is made"
    return ""
