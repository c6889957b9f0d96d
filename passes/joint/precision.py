"""precision: the plan's recipes become explicit quantize and scaled GEMM nodes.

It runs on the inference graph or on the joint graph of forward and backward. There autograd is done, so the three GEMMs
of a linear's training step are rewritten by one rule, and no gradient is taken through quantization.

One quantization serves all GEMMs that read a tensor in the same format, scaled along the same dimension.

If a kernel needs multiples of 16, both operands are padded with zeros before they are quantized. Zeros change neither
the scales nor the product; the padded columns of the result are cut off.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from loka_compile.graph.nodes import unflip
from loka_compile.graph.sites import SITE_META, Gemm, annotate, operands, with_bias
from loka_compile.graph.splice import splice
from loka_compile.kernels.gemm.scaled_gemm import ScaledGemm
from loka_compile.kernels.providers import padded, reasons_against, runner
from loka_compile.kernels.quantize.quantize import ROWS, Quantize, with_zeros
from loka_compile.passes.base import EVERYWHERE, Context, PassResult, Rewrite, rejected
from loka_compile.spec.decision import Decision
from loka_compile.spec.recipes import RECIPES
from loka_compile.spec.site import Site
from loka_compile.spec.target import TARGETS, target_of

Quantized = tuple[fx.Node, fx.Node | None]


@dataclass(frozen=True)
class Precision:
    name: ClassVar[str] = "precision"
    runs_on: ClassVar[tuple[str, ...]] = EVERYWHERE

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        rewrites, rejects = [], []
        shared: dict[Any, Quantized] = {}
        for gemm in annotate(graph):
            decision = context.plan.find(gemm.site)
            reason = check(gemm, decision, context)
            if decision is None or reason:
                rejects.append(rejected(gemm.node, reason))
                continue
            recipe, planned = decision.chosen.recipe, decision.chosen.provider
            provider = _runner(gemm, decision, context)
            larger = padded(provider, gemm.site, RECIPES[recipe], target_of(context.device))
            rewrite(gemm, recipe, provider, larger, shared)
            where = provider if provider == planned else f"{provider} here ({planned} on {context.plan.target})"
            did = filter(None, (f"{recipe} by {where}", gemm.site.padding(larger)))
            rewrites.append(Rewrite(gemm.site.key, ", ".join(did)))
        if rewrites:
            graph.eliminate_dead_code()
        graph.lint()
        return PassResult(tuple(rewrites), tuple(rejects))


def check(gemm: Gemm, decision: Decision | None, context: Context) -> str:
    """Why the GEMM stays as it is; "" if it is to be rewritten."""
    if decision is None:
        return "the plan has no decision for this site"
    if not decision.lowered:
        return decision.reason or "the plan keeps it"
    if not gemm.site.dtype.is_floating_point:
        return f"operands are {gemm.site.dtype}; expected floating point"
    if not _runner(gemm, decision, context):
        recipe, provider = RECIPES[decision.chosen.recipe], decision.chosen.provider
        against = reasons_against(provider, gemm.site, recipe, target_of(context.device))
        return f"{decision.chosen} cannot run here: {'; '.join(against)}"
    return ""


def _runner(gemm: Gemm, decision: Decision, context: Context) -> str:
    """The provider that runs the decision on this device: the plan's own, or its stand-in; "" if there is none."""
    chosen, target = decision.chosen, TARGETS[context.plan.target]
    return runner(chosen.provider, gemm.site, RECIPES[chosen.recipe], target, context.device)


def rewrite(gemm: Gemm, recipe_name: str, provider: str, larger: Site, shared: dict[Any, Quantized]) -> None:
    """Replace one GEMM by quantized operands and loka::scaled_gemm.

    larger: the site with its padded K and N. shared: quantizations made so far, extended here.
    """
    recipe, site, node = RECIPES[recipe_name], gemm.site, gemm.node
    k, n = int(larger.K - site.K), int(larger.N - site.N)
    dtype, scaling = recipe.operand("lhs", site.gradient == "lhs")
    lhs, rhs, bias, alpha, beta = operands(
        node
    )  # read now: an operand may be the result of a GEMM that was just rewritten
    a, a_scale = _quantized(node, lhs, dtype, scaling, -1, (0, k), shared)
    dtype, scaling = recipe.operand("rhs", site.gradient == "rhs")
    b, b_scale = _quantized(node, rhs, dtype, scaling, -2, (k, n), shared)

    out_dtype = site.dtype

    def product(a: Any, a_scale: Any, b: Any, b_scale: Any) -> Any:
        out = ScaledGemm(a, a_scale, b, b_scale, out_dtype, provider)()
        return out[..., :-n].contiguous() if n else out  # contiguous, like the GEMM's result

    out = splice(node, product, [a, a_scale, b, b_scale], **{SITE_META: site})
    if bias is not None:
        out = splice(node, functools.partial(with_bias, alpha=alpha, beta=beta), [out, bias])
    node.replace_all_uses_with(out)
    node.graph.erase_node(node)


def _quantized(
    before: fx.Node,
    operand: fx.Node,
    dtype: torch.dtype,
    scaling: str,
    axis: int,
    more: tuple[int, int],
    shared: dict[Any, Quantized],
) -> Quantized:
    """The operand in few bits and its scale; scale is None for a plain cast.

    more: rows and columns of zeros to add first. A transposed operand is quantized as the tensor it is a view of, so
    forward and backward share one quantization.
    """
    base, flipped = unflip(operand)
    if flipped:
        axis, more = -3 - axis, more[::-1]  # -1 <-> -2
    key = base, dtype, scaling, axis if scaling in (*ROWS, "block") else None, more
    if key not in shared:
        if scaling == "none":
            shared[key] = splice(before, lambda x: with_zeros(x, *more).to(dtype), [base]), None
        else:
            shared[key] = splice(before, lambda x: Quantize(with_zeros(x, *more), dtype, scaling, axis)(), [base])
    q, scale = shared[key]
    if not flipped:
        return q, scale
    one_scale = scale is None or scale.meta["val"].dim() == 1
    return splice(before, _flip, [q]), scale if one_scale else splice(before, _flip, [scale])


def _flip(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(-1, -2)
