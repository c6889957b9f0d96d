"""lower: every loka op becomes its provider's kernel, or its reference written out for Inductor to fuse.

Runs on forward, backward and inference graphs after partitioning. What quantizes is written out (Inductor fuses
it with the norm or activation before it, and the rescaling with what follows), and so are norms that nothing was fused
with; the product is the provider's kernel. In an inference graph a parameter's product becomes a frozen one: quantized
once, until it changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, fx

from loka_compile.graph.sites import SITE_META, in_place_of_gemms, unchanged_parameters, unflip
from loka_compile.graph.splice import hand_over, put, splice, splice_call
from loka_compile.kernels import norms
from loka_compile.kernels.gemm import scaled_gemm as gemm
from loka_compile.kernels.gemm.frozen_gemm import FrozenGemm
from loka_compile.kernels.gemm.scaled_gemm import ScaledGemm
from loka_compile.kernels.gemm_norm import frozen_gemm_norm, gemm_norm
from loka_compile.kernels.gemm_norm.epilogue import GemmNorm
from loka_compile.kernels.gemm_norm.frozen_gemm_norm import FrozenGemmNorm
from loka_compile.kernels.norm_quantize import norm_quantize
from loka_compile.kernels.norm_quantize import norm_quantize_backward as norm_gradients
from loka_compile.kernels.norm_quantize.norm_quantize import NormQuantize
from loka_compile.kernels.norm_quantize.norm_quantize_backward import NormQuantizeBackward
from loka_compile.kernels.op import Op
from loka_compile.kernels.providers import PROVIDERS
from loka_compile.kernels.quantize import quantize as quantization
from loka_compile.kernels.quantize.quantize import Quantize
from loka_compile.passes.base import EVERYWHERE, Context, PassResult, Rewrite

PAD = torch.ops.aten.constant_pad_nd.default
"""How passes/joint/precision.py pads operands."""


@dataclass(frozen=True)
class Lower:
    name: ClassVar[str] = "lower"
    runs_on: ClassVar[tuple[str, ...]] = EVERYWHERE

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        rewrites = [_lower_gemm(node) for node in in_place_of_gemms(graph, ScaledGemm.target())]
        rewrites += [_lower_gemm_norm(node) for node in in_place_of_gemms(graph, GemmNorm.target())]
        if context.device == "cpu":  # no pass puts these there, but a model may
            for node in GemmNorm.calls(graph):
                _write_out(node, GemmNorm.of(node), gemm_norm.composed)
            for node in FrozenGemmNorm.calls(graph):
                _write_out(node, FrozenGemmNorm.of(node), frozen_gemm_norm.composed)
        if rewrites:
            graph.eliminate_dead_code()  # the quantize nodes of frozen weights
        wide = [node for node in NormQuantize.calls(graph) if NormQuantize.of(node).row.dtype in norms.FLOATS]
        quantizes = Quantize.calls(graph)
        for node in wide:
            _write_out(node, NormQuantize.of(node), _as_it_was)
        for node in quantizes:
            _write_out(node, Quantize.of(node), lambda call: quantization.reference(*call.args))
        gradients = NormQuantizeBackward.calls(graph)
        alone = [node for node in gradients if not one_pass_less(NormQuantizeBackward.of(node))]
        for node in alone:  # read anew: what it takes may be one that was written out just now
            _write_out(node, NormQuantizeBackward.of(node), norm_gradients.reference)
        if quantizes or wide or alone:
            graph.eliminate_dead_code()
        graph.lint()
        return PassResult(tuple(rewrites))


def _lower_gemm(node: fx.Node) -> Rewrite:
    call, site = ScaledGemm.of(node), node.meta[SITE_META]
    weight = _frozen_weight(call.b) if site.static_rhs else None
    kernel, out = _plain(node, call) if weight is None else _frozen(node, call, weight)
    node.replace_all_uses_with(out)
    node.graph.erase_node(node)
    return Rewrite(site.key, f"{kernel} ({call.provider})", kernel)


def _frozen(node: fx.Node, call: ScaledGemm, weight: _Weight) -> tuple[str, fx.Node]:
    """The product with a parameter that is quantized once."""
    parameter = weight.node, weight.transposed
    if own := PROVIDERS[call.provider].frozen(weight.dtype, weight.scaling, _plans_memory(call.a)):
        args = [call.a, call.a_scale, *parameter, weight.more, call.out_dtype]
        return own.kernel, splice(node, own.product, args)
    form = weight.dtype, weight.scaling, call.out_dtype, call.provider
    return "loka.frozen_gemm", put(node, FrozenGemm(call.a, call.a_scale, *parameter, *form, weight.more))


def _lower_gemm_norm(node: fx.Node) -> Rewrite:
    """Its weight frozen where it is a parameter."""
    call, site = GemmNorm.of(node), node.meta[SITE_META]
    parameter = _frozen_weight(call.b) if site.static_rhs else None
    if parameter is None or parameter.scaling not in ("none", "row"):
        return Rewrite(site.key, "loka.gemm_norm (triton)", "loka.gemm_norm")
    own, centered = (parameter.node, not parameter.transposed, parameter.dtype), _centered(node, call, parameter)
    made = put(node, FrozenGemmNorm(call.a, call.a_scale, *own, call.epilogue, centered))
    hand_over(node, made)
    how = ", the norm's mean taken out of the weight" if centered else ""
    return Rewrite(site.key, f"loka.frozen_gemm_norm (triton){how}", "loka.frozen_gemm_norm")


def _centered(node: fx.Node, call: GemmNorm, parameter: _Weight) -> bool:
    """Whether a layer norm's mean goes out of weight and bias once, where they are quantized; not where a 16-bit weight
    would be rounded a second time."""
    once = parameter.dtype in norms.FP8 or parameter.node.meta["val"].dtype != parameter.dtype
    if not (once and frozen_gemm_norm.can_center(call.b.meta["val"].shape[0], call.epilogue)):
        return False
    bias = call.epilogue.bias
    return bias is None or bias in unchanged_parameters(node.graph)


def _plain(node: fx.Node, call: ScaledGemm) -> tuple[str, fx.Node]:
    """The provider's kernel where Inductor can see it; what it cannot trace, and emulation, stay one opaque op."""
    own = PROVIDERS[call.provider]
    values = (None if each is None else each.meta["val"] for each in (call.a, call.a_scale))
    if kernel := own.traced(*values):
        return kernel, splice_call(node, call, gemm.product)
    return "loka.scaled_gemm", put(node, call)


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
    quantize = Quantize.made(q, "q")
    if quantize is not None:
        call = Quantize.of(quantize)
        base, dtype, scaling = call.x, call.dtype, call.scaling
    elif b.meta["val"].dtype in (torch.bfloat16, torch.float16) and q.op == "call_function" and q.args:
        base, dtype, scaling = q if q.target is PAD else q.all_input_nodes[0], q.meta["val"].dtype, "none"
    else:
        return None
    more = 0
    if base.target is PAD:
        _, columns, _, rows = cast(tuple[int, int, int, int], base.args[1])
        base = base.all_input_nodes[0]
        more = rows if flipped else columns
    base, flipped_before = unflip(base)
    if base.op != "placeholder":
        return None
    return _Weight(base, flipped != flipped_before, dtype, scaling, more)


def _as_it_was(call: NormQuantize[Tensor]) -> tuple[Tensor, ...]:
    """A loka::norm_quantize to a wide dtype in PyTorch's own norms, as it would stand if it had not been raised; what
    saves its statistics has them to give, and is written out as it is defined."""
    x, weight, bias, row, block = call.x, call.weight, call.bias, call.row, call.row.block
    if row.save:
        return norm_quantize.reference(call)
    rows = x if all(each is None or each.dtype == x.dtype for each in (weight, bias)) else x.float()
    vectors = (weight, bias) if not block else (None, None)
    blocks = rows.unflatten(-1, (-1, block)) if block else rows
    shape = blocks.shape[-1:]
    if row.norm == "layer":
        blocks = torch.nn.functional.layer_norm(blocks, shape, *vectors, row.eps)
    elif row.norm == "rms":
        blocks = torch.nn.functional.rms_norm(blocks, shape, vectors[0], row.eps)
    y = norms.affine(blocks.flatten(-2), weight, bias) if block else blocks
    return (norms.activate(y, row.activation).to(row.dtype),)


def one_pass_less(gradient: NormQuantizeBackward) -> bool:
    """Whether the kernel of a norm's gradient saves what Inductor does apart: sums over rows, a quantization."""
    sums = gradient.weight is not None or gradient.bias is not None or gradient.summed
    return sums or gradient.dtype not in norms.FLOATS


def _write_out(node: fx.Node, call: Op[fx.Node, Any], reference: Callable[[Any], tuple[Tensor, ...]]) -> None:
    """Replace an op with several values by its reference, value by value."""
    hand_over(node, splice_call(node, call, reference))
    for user in list(node.users):
        node.graph.erase_node(user)
    node.graph.erase_node(node)
