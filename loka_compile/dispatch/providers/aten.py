"""aten: PyTorch's own kernels (`_int_mm`, `_scaled_mm`, 16-bit matmul)."""

from __future__ import annotations

import torch

from loka_compile.graph.site import Site
from loka_compile.recipes import RECIPES, Recipe
from loka_compile.target import Target

NAME = "aten"
SPEAKS = tuple(RECIPES)

INT8_MAX_K = (2**31 - 1) // 127**2
UINT8_MAX_K = (2**31 - 1) // (255 * 127)
"""Longest contractions whose int32 sums cannot overflow."""
CUDA_INT8_MIN_M = 16


def multiple(recipe: Recipe, target: Target) -> int:
    """CPU `_scaled_mm` accepts what CUDA's refuses."""
    return 1 if recipe.scaling == "none" else target.alignment


def reasons_against(site: Site, recipe: Recipe, target: Target) -> list[str]:
    if recipe.scaling == "none":
        return _summed_by_inductor(site, target)
    name = "_int_mm" if recipe.dtype == torch.int8 else "_scaled_mm"
    reasons = []
    if site.batch != 1 or site.op in ("bmm", "baddbmm"):
        reasons.append(f"{name} takes two matrices, this is a batch of {site.batch}")
    if recipe.scaling == "block":
        reasons.append("_scaled_mm with block scales is not wired in yet")
    longest = UINT8_MAX_K if recipe.unsigned else INT8_MAX_K
    if recipe.dtype == torch.int8 and not (site.K.is_number and int(site.K) <= longest):
        reasons.append(f"K = {site.K} can overflow int32 (at most {longest} is safe)")
    if recipe.unsigned and target.device != "cpu":
        reasons.append("only the CPU's _int_mm takes uint8")
    if recipe.unsigned and not site.static_rhs:
        reasons.append("uint8 goes with a frozen weight only: the fake of _int_mm wants int8")
    if recipe.dtype != torch.int8 and site.K == 1:
        reasons.append("_scaled_mm wants b by columns, and with K = 1 strides do not say which they are")
    small = not (site.M.is_number and site.M > CUDA_INT8_MIN_M)
    if recipe.dtype == torch.int8 and target.device == "cuda" and small:
        reasons.append(f"CUDA's _int_mm wants more than {CUDA_INT8_MIN_M} rows, M = {site.M}")
    return reasons


def _summed_by_inductor(site: Site, target: Target) -> list[str]:
    """On a CPU Inductor calls no kernel for a batch of vectors (tuned_bmm and the decomposition of bmm, torch 2.13);
    with a frozen weight it calls an op of ours."""
    single = [name for name in ("M", "N", "K") if getattr(site, name) == 1]
    if target.device != "cpu" or site.op not in ("bmm", "baddbmm") or not single or site.static_rhs:
        return []
    return [f"with {' = '.join(single)} = 1 Inductor multiplies and sums, in its own code: no product is called"]
