"""deep_gemm: block-scaled FP8 on Hopper (deep_gemm.fp8_gemm_nt). It leaves casting to its caller, which is us."""

from __future__ import annotations

from loka_compile.dispatch.providers.installed import missing
from loka_compile.graph.site import Site
from loka_compile.recipes import BLOCK, Recipe
from loka_compile.target import Target

NAME = "deep_gemm"
SPEAKS = ("fp8_blockwise",)


def multiple(recipe: Recipe, target: Target) -> int:
    return BLOCK


def reasons_against(site: Site, recipe: Recipe, target: Target) -> list[str]:
    reasons = missing("deep_gemm")
    if not target.fp8_block:
        reasons.append(f"DeepGEMM with float32 block scales runs on Hopper, {target} is none")
    if site.op in ("bmm", "baddbmm"):
        reasons.append("fp8_gemm_nt takes two matrices, this is a batch")
    return reasons
