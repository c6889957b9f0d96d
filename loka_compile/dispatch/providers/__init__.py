"""Providers: whose kernel runs a recipe. One file each; the last accepts everything.

A provider's `SPEAKS` names the recipes it has a kernel for; `multiple(recipe, target)` is what K and N have to be
multiples of; `reasons_against(site, recipe, target)` lists what else keeps it from running one of them (empty: it can).
A newcomer writes one file with these and a name, its computation in kernels/scaled_gemm.py, and adds it to PROVIDERS.

Other sizes are padded: zeros add nothing to a product and change no amax. (An affine operand's smallest value they may
change, but what takes those, on CPUs, takes any size.)
"""

from __future__ import annotations

from types import ModuleType

from loka_compile.dispatch.providers import aten, deep_gemm, emulated, fbgemm, onednn, torchao, triton
from loka_compile.graph.site import Site
from loka_compile.recipes import Recipe
from loka_compile.target import Target, target_of

PROVIDERS: dict[str, ModuleType] = {
    module.NAME: module for module in (aten, onednn, torchao, fbgemm, deep_gemm, triton, emulated)
}
"""In order of preference where times are equal."""


def padded(provider: str, site: Site, recipe: Recipe, target: Target) -> Site:
    """The site as the provider's kernel runs it."""
    return site.padded(PROVIDERS[provider].multiple(recipe, target))


def reasons_against(provider: str, site: Site, recipe: Recipe, target: Target) -> list[str]:
    """Why a provider cannot run a recipe at a site on a target, padded where it has to be."""
    if provider not in PROVIDERS:
        return [f"unknown provider {provider!r}: known are {', '.join(PROVIDERS)}"]
    if recipe.name not in PROVIDERS[provider].SPEAKS:
        return [f"{provider} has no kernel for {recipe}"]
    site, step = padded(provider, site, recipe, target), PROVIDERS[provider].multiple(recipe, target)
    unknown = [f"{n} = {v}" for n, v in (("K", site.K), ("N", site.N)) if v % step != 0]
    unaligned = [f"it wants multiples of {step}, and {', '.join(unknown)}: only numbers are padded"] if unknown else []
    unsigned = []
    if recipe.affine and (site.lhs.flipped or site.gradient == "lhs"):
        unsigned = ["the left operand's smallest values are taken along its rows, and it is transposed or a gradient"]
    elif recipe.affine and site.lhs.nonnegative:
        unsigned = ["no value of the left operand is negative: uint8_rowwise does as well, with less to compute"]
    elif recipe.unsigned and not recipe.affine and not (site.lhs.nonnegative and site.gradient == ""):
        unsigned = ["the left operand may have negative values"]
    return [*unsigned, *PROVIDERS[provider].reasons_against(site, recipe, target), *unaligned]


def runner(planned: str, site: Site, recipe: Recipe, target: Target, device: str) -> str:
    """Who computes on this device what `planned` does on the plan's target.

    Itself where it can. Emulation where the plan is for other hardware, to judge it without that hardware. Nobody
    ("") where the plan is for this very hardware: emulating would be slow without anyone having asked for it.
    """
    if not reasons_against(planned, site, recipe, target_of(device)):
        return planned
    return "" if target.device == device else emulated.NAME
