"""fuse_backward: the gradient of a norm and its activation takes in the ops before and after it.

    norm_quantize_backward -> sum over rows      the gradient of the bias before the norm: one of the op's own sums
    scaled_gemm -> norm_quantize_backward        a ReLU's gradient: loka::gemm_gradient, with the product
    scaled_gemm beside a sum over rows           gradients of weight and bias: loka::grad_weight

The trick in all three: a sum over rows, or a mask, needs a value that another kernel has in registers anyway. The last
two need a plan that runs the product in a provider with an epilogue. Norms and activations are those that raise_norms
made one op of. It works on CUDA.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx

from loka_compile.graph.beside import sum_beside
from loka_compile.graph.nodes import VIEWS, past_views, root, sums_rows
from loka_compile.graph.sites import SITE_META, in_place_of_gemms, module_name
from loka_compile.graph.splice import hand_over, put, splice
from loka_compile.kernels.gemm.gemm_gradient import GemmGradient
from loka_compile.kernels.gemm.grad_weight import GradWeight
from loka_compile.kernels.gemm.scaled_gemm import ScaledGemm
from loka_compile.kernels.gemm.triton_gemm import HALVES
from loka_compile.kernels.norm_quantize.norm_quantize_backward import NormQuantizeBackward
from loka_compile.kernels.providers import FUSING
from loka_compile.passes.base import Context, PassResult, Reject, Rewrite, rejected
from loka_compile.passes.post_grad._padding import NARROWED

aten = torch.ops.aten
LEADING = (*VIEWS, NARROWED, aten.clone.default)
"""Operators between a product and the gradient that reads it: views, and the cut of padded columns."""


@dataclass(frozen=True)
class FuseBackward:
    name: ClassVar[str] = "fuse_backward"
    runs_on: ClassVar[tuple[str, ...]] = ("cuda",)

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        rewrites: list[Rewrite] = []
        rejects: list[Reject] = []
        for node in NormQuantizeBackward.calls(graph):
            _bias(node, rewrites)
        graph.eliminate_dead_code()  # so that replaced nodes no longer count as readers
        for node in in_place_of_gemms(graph, ScaledGemm.target()):
            _gemm(node, rewrites, rejects)
        for node in in_place_of_gemms(graph, ScaledGemm.target()):
            _weight(node, rewrites, rejects)
        if rewrites:
            graph.eliminate_dead_code()
        graph.lint()
        return PassResult(tuple(rewrites), tuple(rejects))


def _bias(gradient: fx.Node, rewrites: list[Rewrite]) -> None:
    """Let the op sum x's gradient over rows itself, instead of a sum that reads it again."""
    outs = NormQuantizeBackward.taken(gradient, "out")
    sums = [node for out in outs for node in past_views(out) if sums_rows(node)]
    if not sums:
        return
    made = put(gradient, replace(NormQuantizeBackward.of(gradient), summed=True))
    hand_over(gradient, made)
    for node in sums:
        total = splice(node, lambda x, shape: x.reshape(shape), [made.total, list(node.meta["val"].shape)])
        node.replace_all_uses_with(total)
    rewrites.append(Rewrite(module_name(gradient), "sums itself over rows, for the bias before it"))


# ---------------------------------------------------------------- with the product before it


def _gemm(gemm: fx.Node, rewrites: list[Rewrite], rejects: list[Reject]) -> None:
    """Let the product that makes a ReLU's incoming gradient apply the ReLU's gradient in its epilogue."""
    gradient = pattern(gemm)
    if gradient is None:
        return
    key = gemm.meta[SITE_META].key
    reason = check(gemm, gradient)
    if reason:
        rejects.append(rejected(gemm, reason))
        return
    product, behind = ScaledGemm.of(gemm), NormQuantizeBackward.of(gradient)
    call = GemmGradient(product.a, product.b, behind.x, behind.gain, behind.summed)
    made = put(gradient, call, **{SITE_META: gemm.meta[SITE_META]})
    for value, node in (("out", made.out), ("total", made.total)):
        for user in NormQuantizeBackward.taken(gradient, value):
            user.replace_all_uses_with(node)
    rewrites.append(Rewrite(key, "with the gradient of the ReLU in its epilogue", "loka.gemm_gradient"))


def pattern(gemm: fx.Node) -> fx.Node | None:
    """The norm_quantize_backward whose incoming gradient is this product, behind views."""
    todo = [gemm]
    while todo:
        for user in todo.pop().users:
            if user.target in LEADING:
                todo.append(user)
            elif NormQuantizeBackward.matches(user) and root(NormQuantizeBackward.of(user).grad, LEADING) is gemm:
                return user
    return None


def check(gemm: fx.Node, gradient: fx.Node) -> str:
    """Why product and gradient stay two ops; "" if they become one."""
    product, behind = ScaledGemm.of(gemm), NormQuantizeBackward.of(gradient)
    value = behind.grad
    while True:  # from the gradient back to the product: each value must have one reader
        others = [user.name for user in value.users if user is not gradient]
        if len(value.users) > 1:
            return f"{value.name} is also read by {', '.join(others[:3])}"
        if value.target is NARROWED:
            return f"N is padded to {value.all_input_nodes[0].meta['val'].shape[-1]}"
        if value is gemm:
            break
        value = value.all_input_nodes[0]
    a, b, x = (each.meta["val"] for each in (product.a, product.b, behind.x))
    if product.provider not in FUSING:
        return f"{product.provider}'s kernel has no epilogue; expected {' or '.join(FUSING)}"
    if product.a_scale is not None or a.dtype not in HALVES:
        return f"operands are {a.dtype}; the kernel needs 16 bits"
    if not behind.of_relu:
        what = behind.norm if behind.norm != "none" else behind.activation
        return f"this is the gradient of {what}; the epilogue computes a ReLU's only"
    if gemm.meta["val"].dim() != 2 or not b.is_contiguous():
        return f"weight has shape {tuple(b.shape)}, strides {b.stride()}; the kernel needs a contiguous matrix"
    if not behind.dtype == x.dtype == a.dtype:
        return f"gradient is {behind.dtype}, operands are {a.dtype}; the kernel needs one dtype"
    return ""


# ---------------------------------------------------------------- a weight's and its bias's


def _weight(gemm: fx.Node, rewrites: list[Rewrite], rejects: list[Reject]) -> None:
    """Let the product for a weight's gradient also sum the bias's gradient, which reads the same operand."""
    total = sum_beside(gemm)
    if total is None:
        return
    site = gemm.meta[SITE_META]
    reason = check_weight(gemm, total)
    if reason:
        rejects.append(rejected(gemm, reason))
        return
    shape = list(total.meta["val"].shape)
    product = ScaledGemm.of(gemm)
    made = put(gemm, GradWeight(product.a.all_input_nodes[0], product.b), **{SITE_META: site})
    gemm.replace_all_uses_with(made.out)
    total.replace_all_uses_with(splice(total, lambda t: t.reshape(shape), [made.total]))
    rewrites.append(Rewrite(site.key, "with the gradient of the bias", "loka.grad_weight"))


def check_weight(gemm: fx.Node, total: fx.Node) -> str:
    """Why the sum of a gradient stays apart from the product that reads the same gradient; "" if they become one op."""
    product = ScaledGemm.of(gemm)
    dtype, out_dtype = product.a.meta["val"].dtype, product.out_dtype
    if product.provider not in FUSING:
        return f"{product.provider}'s kernel does not sum for the bias; expected {' or '.join(FUSING)}"
    if dtype not in HALVES or not out_dtype == total.meta["val"].dtype == dtype:
        return f"result is {out_dtype}, gradient is {dtype}; the kernel needs 16 bits"
    if total < gemm:
        return f"{total.name}, the bias's gradient, is read before the product is computed"
    return ""
