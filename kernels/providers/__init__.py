"""Providers: whose kernel runs a recipe. One object in one file each; see base.py. The last one accepts everything.

A recipe says what the numbers are; a provider computes with them. Its file holds all that loka knows about it: what it
speaks, where it runs and is exact, how it runs, also with a parameter, what rides in its epilogue, and what its product
leaves to be done. The folder is the list: every module in it with a `PROVIDER`.

Sizes that a kernel does not take are padded: zeros add nothing to a product and change no amax. (They may change an
affine operand's smallest value, but the kernels that take affine operands, on CPUs, take any size.)
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable

from loka_compile.kernels.providers.base import Provider
from loka_compile.spec.recipes import Recipe
from loka_compile.spec.site import Site
from loka_compile.spec.target import Target, target_of


def found(folders: Iterable[str]) -> dict[str, Provider]:
    """The providers of the modules in these folders, by name, in the order in which they win ties."""
    names = sorted(module.name for module in pkgutil.iter_modules(folders))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    providers = [module.PROVIDER for module in modules if hasattr(module, "PROVIDER")]
    return {each.name: each for each in sorted(providers, key=lambda each: each.rank)}


PROVIDERS: dict[str, Provider] = found(__path__)
FUSING = tuple(name for name, provider in PROVIDERS.items() if provider.epilogue)
"""Providers whose kernel has an epilogue for norms, activations and quantization."""
EMULATED = "emulated"
"""The provider that runs everything everywhere, slowly."""


def padded(provider: str, site: Site, recipe: Recipe, target: Target) -> Site:
    """The site with K and N as the provider's kernel runs it."""
    return site.padded(PROVIDERS[provider].multiple(recipe, target))


def reasons_against(provider: str, site: Site, recipe: Recipe, target: Target) -> list[str]:
    """Why a provider cannot run a recipe at a site on a target, with the site padded if need be; [] if it can."""
    if provider not in PROVIDERS:
        return [f"unknown provider {provider!r}: known are {', '.join(PROVIDERS)}"]
    if recipe.name not in PROVIDERS[provider].speaks:
        return [f"{provider} has no kernel for {recipe}"]
    site, step = padded(provider, site, recipe, target), PROVIDERS[provider].multiple(recipe, target)
    unknown = [f"{n} = {v}" for n, v in (("K", site.K), ("N", site.N)) if v % step != 0]
    unaligned = [f"it wants multiples of {step}, and {', '.join(unknown)}: only numbers are padded"] if unknown else []
    unsigned = []
    if recipe.unsigned and recipe.signed and (site.lhs.flipped or site.gradient == "lhs"):
        unsigned = ["the left operand is quantized along its rows only, and it is transposed or a gradient"]
    elif recipe.affine and site.lhs.nonnegative:
        unsigned = ["no value of the left operand is negative: uint8_rowwise does as well, with less to compute"]
    elif not recipe.signed and not (site.lhs.nonnegative and site.gradient == ""):
        unsigned = ["the left operand may have negative values"]
    return [*unsigned, *PROVIDERS[provider].reasons_against(site, recipe, target), *unaligned]


def runner(planned: str, site: Site, recipe: Recipe, target: Target, device: str) -> str:
    """The provider that computes on this device what `planned` computes on the plan's target.

    That is `planned` itself if it can run here. If the plan is for other hardware, emulation stands in, so that the
    plan can be judged without that hardware. If the plan is for this hardware the answer is "": emulation would be
    slow, and nobody asked for it.
    """
    if not reasons_against(planned, site, recipe, target_of(device)):
        return planned
    return "" if target.device == device else EMULATED
