"""Modelled times: a roofline for targets that are not at hand.

One kernel takes max(FLOPs / attained peak, bytes / attained bandwidth) + launch, every tensor once through device
memory (the model torchao prints beside its measurements, torchao/testing/training/roofline_utils.py). Casts are
kernels of their own here: reading the operand, writing the quantized one, and one pass more where a tensor-wide amax
must be known first. Inductor fuses casts where it can, so this is a cautious figure.
"""

from __future__ import annotations

import torch

from loka_compile.dispatch.sizes import Sizes
from loka_compile.graph.site import Site
from loka_compile.recipes import Recipe
from loka_compile.target import Target


def keep_us(site: Site, sizes: Sizes, target: Target) -> float:
    """Microseconds of the GEMM as the model has it."""
    width = site.dtype.itemsize
    return _kernel(target, site.dtype, sizes.flops, width * (sizes.lhs + sizes.rhs + sizes.out))


def recipe_us(site: Site, sizes: Sizes, recipe: Recipe, target: Target) -> float:
    """Microseconds of the GEMM in a recipe, with the casts of the operands that are not frozen."""
    wide, narrow = site.dtype.itemsize, recipe.itemsize
    sums = recipe.accumulate.itemsize if recipe.dtype == torch.int8 else wide  # int8's kernel leaves int32 to rescale
    gemm = _kernel(target, recipe.dtype, sizes.flops, narrow * (sizes.lhs + sizes.rhs) + sums * sizes.out)
    casts = _kernel(target, site.dtype, 0, (sums + wide) * sizes.out) if recipe.dtype == torch.int8 else 0.0
    for elements, frozen in ((sizes.lhs, False), (sizes.rhs, site.static_rhs)):
        if not frozen:
            casts += _kernel(target, site.dtype, 0, (wide + narrow) * elements)
            casts += _kernel(target, site.dtype, 0, wide * elements) if recipe.scaling == "tensor" else 0.0
    return gemm + casts


def _kernel(target: Target, dtype: torch.dtype, flops: float, nbytes: float) -> float:
    compute = flops / (target.peak[dtype] * target.attained_flops)
    memory = nbytes / (target.bandwidth * target.attained_bandwidth)
    return (max(compute, memory) + target.launch) * 1e6
