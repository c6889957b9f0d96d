"""Modelled times: a roofline for targets that are not at hand.

One kernel takes max(FLOPs / attained peak, bytes / attained bandwidth) + launch, every tensor once through device
memory (the model torchao prints beside its measurements, torchao/testing/training/roofline_utils.py). A cast that
Inductor can fuse with what makes the tensor only adds writing the narrow values; any other is a kernel of its own,
reading and writing. A tensor-wide amax, which must be known first, is one pass more in both.
"""

from __future__ import annotations

from typing import Any

import sympy
import torch

from loka_compile.dispatch.cost import Cost, casts
from loka_compile.dispatch.sizes import Sizes
from loka_compile.graph.site import Site
from loka_compile.recipes import Recipe
from loka_compile.target import Target


def keep_us(site: Site, sizes: Sizes, target: Target) -> float:
    """Microseconds of the GEMM as the model has it."""
    width = site.dtype.itemsize
    return _kernel(target, site.dtype, sizes.flops, width * (sizes.lhs + sizes.rhs + sizes.out))


def cost(site: Site, sizes: Sizes, recipe: Recipe, target: Target) -> Cost:
    """The GEMM in a recipe, with the casts of the operands that are not frozen."""
    wide, narrow = site.dtype.itemsize, recipe.itemsize
    sums = recipe.accumulate.itemsize if recipe.dtype == torch.int8 else wide  # int8's kernel leaves int32 to rescale
    gemm = _kernel(target, recipe.dtype, sizes.flops, narrow * (sizes.lhs + sizes.rhs) + sums * sizes.out)
    rescale = _kernel(target, site.dtype, 0, (sums + wide) * sizes.out) if recipe.dtype == torch.int8 else 0.0

    def cast_us(elements: int, fused: bool) -> float:
        amax = _kernel(target, site.dtype, 0, wide * elements) if recipe.scaling == "tensor" else 0.0
        if fused:  # the producer has the values at hand: what is new is writing the narrow ones
            return amax + _moved(target, narrow * elements)
        return amax + _kernel(target, site.dtype, 0, (wide + narrow) * elements)

    return Cost(gemm + rescale, casts(site, sizes, recipe, cast_us))


def _moved(target: Target, nbytes: float) -> float:
    return nbytes / (target.bandwidth * target.attained_bandwidth) * 1e6


def _kernel(target: Target, dtype: torch.dtype, flops: float, nbytes: float) -> float:
    compute = flops / (target.peak[dtype] * target.attained_flops)
    memory = nbytes / (target.bandwidth * target.attained_bandwidth)
    return (_larger(compute, memory) + target.launch) * 1e6


def _larger(a: Any, b: Any) -> Any:
    """Of two numbers, or of two expressions in the batch's symbol."""
    return sympy.Max(a, b) if isinstance(a, sympy.Expr) or isinstance(b, sympy.Expr) else max(a, b)
