"""The work that a fusing kernel's epilogue takes over: a norm or activation behind a product, and a cast of the result.

A fusing kernel multiplies tile by tile. What it can do to a tile before it writes it depends on how much of the result
the tile holds: an activation needs one value, a norm and a scale per row need whole rows.
"""

from __future__ import annotations

from loka_compile.kernels.providers import FUSING, PROVIDERS
from loka_compile.spec.decision import Candidate
from loka_compile.spec.recipes import RECIPES
from loka_compile.spec.site import Site


def fuses(candidate: Candidate, site: Site) -> bool:
    """Whether the candidate's kernel has an epilogue for operands that are scaled like the recipe's.

    Two cases are out: a product with a gradient is fused in 16 bits only, and the sum beside a grad_weight reads the
    gradient as it was before any cast.
    """
    recipe = RECIPES[candidate.recipe]
    narrow = bool(site.gradient) and recipe.itemsize == 1
    cast = site.epilogue == "sum" and recipe.dtype != site.dtype
    takes = candidate.provider in FUSING and recipe.scaling in PROVIDERS[candidate.provider].epilogue
    return takes and not narrow and not cast


def takes_epilogue(site: Site) -> bool:
    """Whether a fusing kernel's tile holds what the site's epilogue reads: whole rows for a norm, and no padding."""
    aligned = any(site.N % PROVIDERS[name].tile == 0 for name in FUSING)
    return site.epilogue == "sum" or (site.epilogue == "activation" and aligned) or emits(site)


def emits(site: Site) -> bool:
    """Whether a fusing kernel's tile holds whole rows without padding, so that it can write them scaled by row."""
    if site.op not in ("mm", "addmm") or not site.N.is_number:
        return False
    return any(int(site.N) <= PROVIDERS[name].widest and site.N % PROVIDERS[name].tile == 0 for name in FUSING)
