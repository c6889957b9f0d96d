"""Modelled times of a site's kernels, by spec/roofline.py, for targets that are not at hand.

A cast that Inductor can fuse with what makes the tensor only adds writing the narrow values; any other is a kernel of
its own, reading and writing. A tensor-wide amax, which must be known first, is one pass more in both. Scales of
grad_weight's operands span the batch, and what makes those goes row by row: a pass for the amax, and a kernel of its
own. In FP8 with one scale a column the amax comes with the form by rows, where another site takes that: one op makes
both (passes/post_grad/fuse_cast.py).

A norm or an activation behind the product is a pass of its own, counted to the site, unless the site's kernel has an
epilogue for it (epilogue.py). Such a kernel also casts what it writes for nothing, where only the narrow values are
wanted; that it writes fewer bytes then is left out. What else reads the product (the backward of a norm) has it written
too.

A padded product is one of the padded sizes. Casts write the zeros too, which takes no kernel more; the columns that are
too many are left out by what stands behind the product, or else by a copy: before the gradient of a norm or an
activation too, which is a kernel of its own. A fusing kernel has no epilogue for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from loka_compile.dispatch.candidates import Fit
from loka_compile.dispatch.cost import Asked, Cast, Cost, Needed, Times, casts
from loka_compile.kernels.norms import FP8
from loka_compile.spec.recipes import Recipe
from loka_compile.spec.roofline import rates_of
from loka_compile.spec.site import Site
from loka_compile.spec.sizes import Sizes
from loka_compile.spec.target import Target


def modelled(target: Target, asked: Sequence[Asked], margin: float) -> list[Times]:
    """The clock of a target that is not at hand. A formula takes no time, so all candidates are timed, whatever they
    have to win by (`margin`). Sizes may be expressions, and so are times then."""
    return [
        Times(
            keep_us(each.site, each.sizes, target),
            {fit.candidate: cost(fit, each.sizes, target) for fit in each.fits},
            f"modelled: roofline {target}",
        )
        for each in asked
    ]


def keep_us(site: Site, sizes: Sizes, target: Target) -> float:
    """Microseconds of the GEMM as the model has it, and of what stands behind it."""
    width = site.dtype.itemsize
    gemm = _kernel(target, site.dtype, sizes.flops, width * (sizes.lhs + sizes.rhs + sizes.out))
    return gemm + _behind(site, sizes, target)


def _behind(site: Site, sizes: Sizes, target: Target) -> float:
    if site.epilogue == "sum":  # of many rows: two kernels, the first of which reads them
        return _kernel(target, site.dtype, 0, site.dtype.itemsize * sizes.lhs) + target.launch * 1e6
    return _kernel(target, site.dtype, 0, 2 * site.dtype.itemsize * sizes.out) if site.epilogue else 0.0


def cost(fit: Fit, sizes: Sizes, target: Target) -> Cost:
    """The GEMM in a recipe and what stands behind it, with the casts of the operands that are not frozen."""
    site, recipe, larger = fit.site, fit.recipe, fit.run
    wide, narrow = site.dtype.itemsize, recipe.itemsize
    sums = recipe.accumulate.itemsize if recipe.dtype == torch.int8 else wide  # int8's kernel leaves int32 to rescale
    run = replace(sizes, **{n: int(getattr(larger, n)) for n in ("K", "N") if getattr(larger, n) != getattr(site, n)})
    gemm = _kernel(target, recipe.dtype, run.flops, narrow * (run.lhs + run.rhs) + sums * run.out)
    rescale = _kernel(target, site.dtype, 0, (sums + wide) * sizes.out) if recipe.dtype == torch.int8 else 0.0
    copied = run.N != sizes.N and not rescale and (not site.epilogue or bool(site.gradient))
    narrowed = _kernel(target, site.dtype, 0, 2 * wide * sizes.out) if copied else 0.0
    kept_us = _moved(target, site.dtype, wide * sizes.out if site.kept else 0)
    behind = kept_us if fit.takes_epilogue else _behind(site, sizes, target)
    needed = casts(site, sizes, recipe, run)
    return Cost(gemm + rescale + narrowed + behind, tuple(_cast(each, site, recipe, target) for each in needed))


def _cast(needed: Needed, site: Site, recipe: Recipe, target: Target) -> Cast:
    wide, narrow, elements = site.dtype.itemsize, recipe.itemsize, needed.elements
    amax = _kernel(target, site.dtype, 0, wide * elements)
    apart = _kernel(target, site.dtype, 0, (wide + narrow) * elements)
    if needed.late:
        return Cast(needed.form, amax + apart, beside_us=apart if needed.by_columns and recipe.dtype in FP8 else 0.0)
    before = amax if recipe.scaling == "tensor" else 0.0
    fused = _moved(target, site.dtype, narrow * elements)  # the producer has the values at hand: narrow ones are new
    return needed.taking(before + (fused if needed.fused else apart), before + apart)


def _moved(target: Target, dtype: torch.dtype, nbytes: float) -> float:
    """Microseconds of the bytes alone, which another kernel moves along with its own."""
    return rates_of(target, dtype).memory(nbytes) * 1e6


def _kernel(target: Target, dtype: torch.dtype, flops: float, nbytes: float) -> float:
    return rates_of(target, dtype).seconds(flops, nbytes) * 1e6
