"""Modelled times of a site's kernels, by spec/roofline.py, for targets that are not at hand.

A cast that Inductor can fuse with what makes the tensor only adds writing the narrow values; any other is a kernel of
its own, reading and writing. A tensor-wide amax, which must be known first, is one pass more in both. Scales of
grad_weight's operands span the batch, and what makes those goes row by row: a pass for the amax, and a kernel of its
own. In FP8 with one scale a column the amax comes with the form by rows, where another site takes that: one op makes
both (passes/post_grad/fuse_cast.py).

A norm or an activation behind the product is a pass of its own, counted to the site, unless the site's kernel has an
epilogue for it (FUSING). Such a kernel also casts what it writes for nothing, where only the narrow values are wanted;
that it writes fewer bytes then is left out. What else reads the product (the backward of a norm) has it written too.

A padded product is one of the padded sizes. Casts write the zeros too, which takes no kernel more; the columns that are
too many are left out by what stands behind the product, or else by a copy: before the gradient of a norm or an
activation too, which is a kernel of its own. A fusing kernel has no epilogue for them.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from loka_compile.dispatch.cost import Cost, casts
from loka_compile.kernels.norms import FP8
from loka_compile.kernels.providers import FUSING, PROVIDERS, padded
from loka_compile.spec.decision import Candidate
from loka_compile.spec.recipes import RECIPES, Recipe
from loka_compile.spec.roofline import rates_of
from loka_compile.spec.site import Site
from loka_compile.spec.sizes import Sizes
from loka_compile.spec.target import Target


def keep_us(site: Site, sizes: Sizes, target: Target) -> float:
    """Microseconds of the GEMM as the model has it, and of what stands behind it."""
    width = site.dtype.itemsize
    gemm = _kernel(target, site.dtype, sizes.flops, width * (sizes.lhs + sizes.rhs + sizes.out))
    return gemm + _behind(site, sizes, target)


def _behind(site: Site, sizes: Sizes, target: Target) -> float:
    if site.epilogue == "sum":  # of many rows: two kernels, the first of which reads them
        return _kernel(target, site.dtype, 0, site.dtype.itemsize * sizes.lhs) + target.launch * 1e6
    return _kernel(target, site.dtype, 0, 2 * site.dtype.itemsize * sizes.out) if site.epilogue else 0.0


def cost(site: Site, sizes: Sizes, recipe: Recipe, target: Target, provider: str) -> Cost:
    """The GEMM in a recipe and what stands behind it, with the casts of the operands that are not frozen."""
    wide, narrow = site.dtype.itemsize, recipe.itemsize
    sums = recipe.accumulate.itemsize if recipe.dtype == torch.int8 else wide  # int8's kernel leaves int32 to rescale
    larger = padded(provider, site, recipe, target)
    run = replace(sizes, **{n: int(getattr(larger, n)) for n in ("K", "N") if getattr(larger, n) != getattr(site, n)})
    gemm = _kernel(target, recipe.dtype, run.flops, narrow * (run.lhs + run.rhs) + sums * run.out)
    rescale = _kernel(target, site.dtype, 0, (sums + wide) * sizes.out) if recipe.dtype == torch.int8 else 0.0
    copied = run.N != sizes.N and not rescale and (not site.epilogue or bool(site.gradient))
    narrowed = _kernel(target, site.dtype, 0, 2 * wide * sizes.out) if copied else 0.0

    def cast_us(elements: int, fused: bool) -> float:
        amax = _kernel(target, site.dtype, 0, wide * elements) if recipe.scaling == "tensor" else 0.0
        if fused:  # the producer has the values at hand: what is new is writing the narrow ones
            return amax + _moved(target, site.dtype, narrow * elements)
        return amax + _kernel(target, site.dtype, 0, (wide + narrow) * elements)

    def late_us(elements: int) -> tuple[float, float]:
        amax = _kernel(target, site.dtype, 0, wide * elements)
        cast = _kernel(target, site.dtype, 0, (wide + narrow) * elements)
        return amax + cast, cast if recipe.dtype in FP8 else 0.0

    fused = fuses(Candidate(recipe.name, provider), site) and takes_epilogue(site)
    behind = _moved(target, site.dtype, wide * sizes.out if site.kept else 0) if fused else _behind(site, sizes, target)
    return Cost(gemm + rescale + narrowed + behind, casts(site, sizes, recipe, cast_us, run, late_us))


def fuses(candidate: Candidate, site: Site) -> bool:
    """Whether the kernel has an epilogue for operands that are scaled so; that for a gradient multiplies 16 bits, and
    what is summed beside a product must not have been cast for it."""
    recipe = RECIPES[candidate.recipe]
    narrow = bool(site.gradient) and recipe.itemsize == 1
    cast = site.epilogue == "sum" and recipe.dtype != site.dtype
    takes = candidate.provider in FUSING and recipe.scaling in PROVIDERS[candidate.provider].epilogue
    return takes and not narrow and not cast


def takes_epilogue(site: Site) -> bool:
    """Whether a fusing kernel's tile sees what the site's epilogue needs whole: rows, for a norm. Of columns that are
    padded it sees too much."""
    aligned = any(site.N % PROVIDERS[name].tile == 0 for name in FUSING)
    return site.epilogue == "sum" or (site.epilogue == "activation" and aligned) or emits(site)


def emits(site: Site) -> bool:
    """Whether a fusing kernel's tile sees whole rows, as their scales want it, and no more."""
    if site.op not in ("mm", "addmm") or not site.N.is_number:
        return False
    return any(int(site.N) <= PROVIDERS[name].widest and site.N % PROVIDERS[name].tile == 0 for name in FUSING)


def _moved(target: Target, dtype: torch.dtype, nbytes: float) -> float:
    """Microseconds of the bytes alone, which another kernel moves along with its own."""
    return rates_of(target, dtype).memory(nbytes) * 1e6


def _kernel(target: Target, dtype: torch.dtype, flops: float, nbytes: float) -> float:
    return rates_of(target, dtype).seconds(flops, nbytes) * 1e6
