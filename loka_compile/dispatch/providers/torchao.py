"""torchao: its int8 product with row scales, and its FP8 products. Seen with torchao 0.18.

On CPUs its kernels are PyTorch's own behind another door; what they cost is measured like any other's.
"""

from __future__ import annotations

import torch

from loka_compile.dispatch.providers import aten
from loka_compile.dispatch.providers.installed import missing
from loka_compile.graph.site import Site
from loka_compile.processor import processor
from loka_compile.recipes import Recipe
from loka_compile.target import Target

NAME = "torchao"
SPEAKS = ("int8_rowwise", "fp8_tensorwise", "fp8_rowwise")


multiple = aten.multiple


def reasons_against(site: Site, recipe: Recipe, target: Target) -> list[str]:
    """As far as aten's kernels reach, less what torchao does not pad."""
    reasons = missing("torchao", "torchao")
    ones = [name for name in ("M", "N", "K") if getattr(site, name) == 1]
    if recipe.dtype == torch.int8 and ones:
        reasons.append(f"torchao does not pad {', '.join(ones)} = 1, which the CPU's _int_mm gets wrong")
    if recipe.dtype == torch.int8 and target.device == "cpu" and processor().int_mm_saturates:
        reasons.append("torchao's int8 product is PyTorch's _int_mm, which saturates in 16 bits without VNNI")
    return reasons + aten.reasons_against(site, recipe, target)
