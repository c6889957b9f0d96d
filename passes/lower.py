"""lower: every loka op becomes its provider's kernel, or its reference written out for Inductor to fuse.

Runs on forward, backward and inference graphs after partitioning. What quantizes is written out (Inductor fuses
it with the norm or activation before it, and the rescaling with what follows), and so are norms that nothing was fused
with; the product is the provider's kernel. In an inference graph a parameter's product becomes a frozen one: quantized
once, until it changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import getitem
from typing import Any, ClassVar

import torch
from torch import fx

from loka_compile.graph.sites import SITE_META, in_place_of_gemms, unchanged_parameters, unflip
from loka_compile.graph.splice import splice
from loka_compile.kernels import frozen_gemm_norm, gemm_norm
from loka_compile.kernels import norm_quantize as norms
from loka_compile.kernels import norm_quantize_backward as gradients
from loka_compile.kernels import quantize as quantization
from loka_compile.kernels import scaled_gemm as gemm
from loka_compile.kernels.frozen_gemm import frozen_gemm
from loka_compile.kernels.providers import PROVIDERS
from loka_compile.passes.base import EVERYWHERE, Context, PassResult, Rewrite

QUANTIZE = torch.ops.loka.quantize.default
PAD = torch.ops.aten.constant_pad_nd.default
"""Of operands (passes/precision.py)."""
SCALED_GEMM = torch.ops.loka.scaled_gemm.default
GEMM_NORM = torch.ops.loka.gemm_norm.default
NORM = torch.ops.loka.norm_quantize.default
NORM_BACKWARD = torch.ops.loka.norm_quantize_backward.default
COMPOSED = {GEMM_NORM: gemm_norm.composed, torch.ops.loka.frozen_gemm_norm.default: frozen_gemm_norm.composed}
"""Ops that no pass puts into a CPU's graph, but a model may: what Inductor sees of them there."""


@dataclass(frozen=True)
class Lower:
    name: ClassVar[str] = "lower"
    runs_on: ClassVar[tuple[str, ...]] = EVERYWHERE

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        rewrites = [_lower_gemm(node) for node in in_place_of_gemms(graph, SCALED_GEMM)]
        rewrites += [_lower_gemm_norm(node) for node in in_place_of_gemms(graph, GEMM_NORM)]
        for op, composed in COMPOSED.items() if context.device == "cpu" else ():
            for node in graph.find_nodes(op="call_function", target=op):
                _write_out(node, composed)
        if rewrites:
            graph.eliminate_dead_code()  # the quantize nodes of frozen weights
        wide = [n for n in graph.find_nodes(op="call_function", target=NORM) if n.args[7] in norms.FLOATS]
        quantizes = graph.find_nodes(op="call_function", target=QUANTIZE)
        for node in wide:
            _write_out(node, _as_it_was)
        for node in quantizes:
            _write_out(node, quantization.reference)
        alone = [n for n in graph.find_nodes(op="call_function", target=NORM_BACKWARD) if not one_pass_less(n)]
        for node in alone:
            _write_out(node, gradients.reference)
        if quantizes or wide or alone:
            graph.eliminate_dead_code()
        graph.lint()
        return PassResult(tuple(rewrites))


def _lower_gemm(node: fx.Node) -> Rewrite:
    a, a_scale, b, _, out_dtype, provider = node.args
    site = node.meta[SITE_META]
    weight = _frozen_weight(b) if site.static_rhs else None  # type: ignore[arg-type]
    if weight is None:
        kernel, out = _plain(node)
    elif own := PROVIDERS[provider].frozen(weight.dtype, weight.scaling, _plans_memory(a)):  # type: ignore[index,arg-type]
        kernel = own.kernel
        out = splice(node, own.product, [a, a_scale, weight.node, weight.transposed, weight.more, out_dtype])
    else:
        form = [weight.transposed, weight.dtype, weight.scaling, out_dtype, provider]
        kernel = "loka.frozen_gemm"
        out = splice(node, frozen_gemm, [a, a_scale, weight.node, *form, weight.more])
    node.replace_all_uses_with(out)
    node.graph.erase_node(node)
    return Rewrite(site.key, f"{kernel} ({provider})", kernel)


def _lower_gemm_norm(node: fx.Node) -> Rewrite:
    """Its weight frozen where it is a parameter."""
    a, a_scale, b, _, bias, residual, weight, shift, _, *named = node.args
    site = node.meta[SITE_META]
    parameter = _frozen_weight(b) if site.static_rhs else None  # type: ignore[arg-type]
    if parameter is None or parameter.scaling not in ("none", "row"):
        return Rewrite(site.key, "loka.gemm_norm (triton)", "loka.gemm_norm")
    form = [parameter.node, not parameter.transposed, parameter.dtype]
    centered = _centered(node, parameter)
    rest = [bias, residual, weight, shift, *named, centered]
    made = splice(node, frozen_gemm_norm.frozen_gemm_norm, [a, a_scale, *form, *rest])
    for user in list(node.users):
        if user.users:
            user.replace_all_uses_with(made[user.args[1]])  # type: ignore[index]
    how = ", the norm's mean taken out of the weight" if centered else ""
    return Rewrite(site.key, f"loka.frozen_gemm_norm (triton){how}", "loka.frozen_gemm_norm")


def _centered(node: fx.Node, parameter: _Weight) -> bool:
    """Whether a layer norm's mean goes out of weight and bias once, where they are quantized; not where a 16-bit weight
    would be rounded a second time."""
    _, _, b, _, bias, residual, _, _, _, norm, block, *_, save = node.args
    once = parameter.dtype in norms.FP8 or parameter.node.meta["val"].dtype != parameter.dtype
    n = b.meta["val"].shape[0]  # type: ignore[union-attr]
    if not (once and frozen_gemm_norm.can_center(n, residual, norm, block, save)):  # type: ignore[arg-type]
        return False
    return bias is None or bias in unchanged_parameters(node.graph)


def _plain(node: fx.Node) -> tuple[str, Any]:
    """The provider's kernel where Inductor can see it; what it cannot trace, and emulation, stay one opaque op."""
    a, a_scale, b, b_scale, out_dtype, provider = node.args
    own = PROVIDERS[provider]  # type: ignore[index]
    values = (None if each is None else each.meta["val"] for each in (a, a_scale))  # type: ignore[union-attr]
    if kernel := own.traced(*values):
        return kernel, splice(node, own.product, [a, a_scale, b, b_scale, out_dtype])
    return "loka.scaled_gemm", splice(node, gemm.scaled_gemm, node.args)


def _plans_memory(a: fx.Node) -> bool:
    """Whether Inductor plans memory for the product: not of an empty one, which nothing reads, and yet it is written to
    (torch 2.13)."""
    return all(isinstance(size, int) and size > 0 for size in a.meta["val"].shape)


@dataclass(frozen=True)
class _Weight:
    """A parameter behind a quantized right operand, and how it is quantized along the contraction.

    more: the columns of zeros that the operand has beside its own.
    """

    node: fx.Node
    transposed: bool
    dtype: torch.dtype
    scaling: str
    more: int


def _frozen_weight(b: fx.Node) -> _Weight | None:
    q, flipped = unflip(b)
    if q.target is getitem and q.args[0].target is QUANTIZE:  # type: ignore[union-attr]
        base, dtype, scaling, _ = q.args[0].args  # type: ignore[union-attr]
    elif b.meta["val"].dtype in (torch.bfloat16, torch.float16) and q.op == "call_function" and q.args:
        base, dtype, scaling = q if q.target is PAD else q.args[0], q.meta["val"].dtype, "none"
    else:
        return None
    more = 0
    if base.target is PAD:  # type: ignore[union-attr]
        base, (_, columns, _, rows) = base.args[:2]  # type: ignore[union-attr,misc]
        more = rows if flipped else columns
    base, flipped_before = unflip(base)  # type: ignore[arg-type]
    if base.op != "placeholder":
        return None
    return _Weight(base, flipped != flipped_before, dtype, scaling, more)  # type: ignore[arg-type]


def _as_it_was(
    x: Any, weight: Any, bias: Any, given: None, norm: str, block: int, activation: str, dtype: torch.dtype, eps: float,
    save: bool,
) -> tuple[Any, ...]:  # fmt: skip
    """A loka::norm_quantize to a wide dtype in PyTorch's own norms, as it would stand if it had not been raised; what
    saves its statistics has them to give, and is written out as it is defined."""
    if save:
        return norms.reference(x, weight, bias, given, norm, block, activation, dtype, eps, save)
    rows = x if all(each is None or each.dtype == x.dtype for each in (weight, bias)) else x.float()
    vectors = (weight, bias) if not block else (None, None)
    blocks = rows.unflatten(-1, (-1, block)) if block else rows
    shape = blocks.shape[-1:]
    if norm == "layer":
        blocks = torch.nn.functional.layer_norm(blocks, shape, *vectors, eps)
    elif norm == "rms":
        blocks = torch.nn.functional.rms_norm(blocks, shape, vectors[0], eps)
    y = norms.affine(blocks.flatten(-2), weight, bias) if block else blocks
    return (norms.activate(y, activation).to(dtype),)


def one_pass_less(gradient: fx.Node) -> bool:
    """Whether the kernel of a norm's gradient saves what Inductor does apart: sums over rows, a quantization."""
    weight, bias, dtype, summed = (gradient.args[i] for i in (3, 4, 8, 10))
    return weight is not None or bias is not None or bool(summed) or dtype not in norms.FLOATS


def _write_out(node: fx.Node, reference: Callable[..., Any]) -> None:
    """Replace an op with several values by its reference, value by value."""
    outputs = splice(node, reference, node.args)
    for user in list(node.users):
        user.replace_all_uses_with(outputs[user.args[1]])
        node.graph.erase_node(user)
    node.graph.erase_node(node)
