"""lower: every loka op becomes its provider's kernel, or its reference written out for Inductor to fuse.

It runs last, on forward, backward and inference graphs.

    scaled_gemm       the provider's kernel; a weight that is a parameter is quantized once (frozen), in inference
    gemm_norm         loka's kernel, also with a frozen weight
    quantize          written out: Inductor fuses it with the norm or activation before it
    norm_quantize     written out as PyTorch's own norm, if nothing was fused with it
    its gradient      written out, unless its kernel saves a pass over memory
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, fx

from loka_compile.graph.sites import SITE_META, in_place_of_gemms, unchanged_parameters
from loka_compile.graph.splice import hand_over, put, splice, splice_call
from loka_compile.kernels import norms
from loka_compile.kernels.gemm import scaled_gemm as gemm
from loka_compile.kernels.gemm.frozen_gemm import FrozenGemm
from loka_compile.kernels.gemm.scaled_gemm import ScaledGemm
from loka_compile.kernels.gemm_norm import frozen_gemm_norm, gemm_norm
from loka_compile.kernels.gemm_norm.epilogue import GemmNorm
from loka_compile.kernels.gemm_norm.frozen_gemm_norm import FrozenGemmNorm
from loka_compile.kernels.norm_quantize import norm_quantize_backward as norm_gradients
from loka_compile.kernels.norm_quantize.norm_quantize import NormQuantize
from loka_compile.kernels.norm_quantize.norm_quantize_backward import NormQuantizeBackward
from loka_compile.kernels.op import Op
from loka_compile.kernels.providers import PROVIDERS
from loka_compile.kernels.quantize import quantize as quantization
from loka_compile.kernels.quantize.quantize import Quantize
from loka_compile.passes.base import EVERYWHERE, Context, PassResult, Rewrite
from loka_compile.passes.post_grad._norms import in_torch, one_pass_less
from loka_compile.passes.post_grad._weight import Weight, weight_behind


@dataclass(frozen=True)
class Lower:
    name: ClassVar[str] = "lower"
    runs_on: ClassVar[tuple[str, ...]] = EVERYWHERE

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        rewrites = [_lower_gemm(node) for node in in_place_of_gemms(graph, ScaledGemm.target())]
        rewrites += [_lower_gemm_norm(node) for node in in_place_of_gemms(graph, GemmNorm.target())]
        if context.device == "cpu":  # no pass adds these on a CPU, but a model may call them
            for node in GemmNorm.calls(graph):
                _write_out(node, GemmNorm.of(node), gemm_norm.composed)
            for node in FrozenGemmNorm.calls(graph):
                _write_out(node, FrozenGemmNorm.of(node), frozen_gemm_norm.composed)
        if rewrites:
            graph.eliminate_dead_code()  # drops the quantizations of frozen weights
        wide = [node for node in NormQuantize.calls(graph) if NormQuantize.of(node).row.dtype in norms.FLOATS]
        quantizes = Quantize.calls(graph)
        for node in wide:
            _write_out(node, NormQuantize.of(node), in_torch)
        for node in quantizes:
            _write_out(node, Quantize.of(node), lambda call: quantization.reference(*call.args))
        gradients = NormQuantizeBackward.calls(graph)
        alone = [node for node in gradients if not one_pass_less(NormQuantizeBackward.of(node))]
        for node in alone:  # .of() reads the call now: its operands may have been written out just above
            _write_out(node, NormQuantizeBackward.of(node), norm_gradients.reference)
        if quantizes or wide or alone:
            graph.eliminate_dead_code()
        graph.lint()
        return PassResult(tuple(rewrites))


def _lower_gemm(node: fx.Node) -> Rewrite:
    """Put the provider's product in place of a scaled_gemm."""
    call, site = ScaledGemm.of(node), node.meta[SITE_META]
    weight = weight_behind(call.b) if site.static_rhs else None
    kernel, out = _plain(node, call) if weight is None else _frozen(node, call, weight)
    node.replace_all_uses_with(out)
    node.graph.erase_node(node)
    return Rewrite(site.key, f"{kernel} ({call.provider})", kernel)


def _frozen(node: fx.Node, call: ScaledGemm, weight: Weight) -> tuple[str, fx.Node]:
    """The product with a parameter that is quantized once: (kernel, node)."""
    parameter = weight.node, weight.transposed
    if own := PROVIDERS[call.provider].frozen(weight.dtype, weight.scaling, _plans_memory(call.a)):
        args = [call.a, call.a_scale, *parameter, weight.more, call.out_dtype]
        return own.kernel, splice(node, own.product, args)
    form = weight.dtype, weight.scaling, call.out_dtype, call.provider
    return "loka.frozen_gemm", put(node, FrozenGemm(call.a, call.a_scale, *parameter, *form, weight.more))


def _lower_gemm_norm(node: fx.Node) -> Rewrite:
    """Freeze the op's weight if it is a parameter; else the op stays as it is."""
    call, site = GemmNorm.of(node), node.meta[SITE_META]
    parameter = weight_behind(call.b) if site.static_rhs else None
    if parameter is None or parameter.scaling not in ("none", "row"):
        return Rewrite(site.key, "loka.gemm_norm (triton)", "loka.gemm_norm")
    own, centered = (parameter.node, not parameter.transposed, parameter.dtype), _centered(node, call, parameter)
    made = put(node, FrozenGemmNorm(call.a, call.a_scale, *own, call.epilogue, centered))
    hand_over(node, made)
    how = ", the norm's mean taken out of the weight" if centered else ""
    return Rewrite(site.key, f"loka.frozen_gemm_norm (triton){how}", "loka.frozen_gemm_norm")


def _centered(node: fx.Node, call: GemmNorm, parameter: Weight) -> bool:
    """Whether a layer norm's mean can be taken out of weight and bias once, where they are quantized.

    The trick: the mean of x W over its columns is x times the mean of W's columns. A weight whose columns have mean
    zero gives a product whose rows have mean zero. A 16-bit weight that is not quantized is left alone: it would be
    rounded a second time.
    """
    once = parameter.dtype in norms.FP8 or parameter.node.meta["val"].dtype != parameter.dtype
    if not (once and frozen_gemm_norm.can_center(call.b.meta["val"].shape[0], call.epilogue)):
        return False
    bias = call.epilogue.bias
    return bias is None or bias in unchanged_parameters(node.graph)


def _plain(node: fx.Node, call: ScaledGemm) -> tuple[str, fx.Node]:
    """The product with operands as they are: (kernel, node). Kernels that Inductor cannot trace, and emulation, stay
    one opaque op."""
    own = PROVIDERS[call.provider]
    values = (None if each is None else each.meta["val"] for each in (call.a, call.a_scale))
    if kernel := own.traced(*values):
        return kernel, splice_call(node, call, gemm.product)
    return "loka.scaled_gemm", put(node, call)


def _plans_memory(a: fx.Node) -> bool:
    """Whether Inductor plans memory for the product. In torch 2.13 it does not for an empty one, yet writes it."""
    return all(isinstance(size, int) and size > 0 for size in a.meta["val"].shape)


def _write_out(node: fx.Node, call: Op[fx.Node, Any], reference: Callable[[Any], tuple[Tensor, ...]]) -> None:
    """Replace an op with several values by its reference, value by value."""
    hand_over(node, splice_call(node, call, reference))
    for user in list(node.users):
        node.graph.erase_node(user)
    node.graph.erase_node(node)
