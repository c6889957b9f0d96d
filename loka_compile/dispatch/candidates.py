"""Candidates: recipes by providers, and how each of them would run at a site.

This stage knows the site and the target. It knows neither errors nor times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from loka_compile.dispatch.epilogue import fuses, takes_epilogue
from loka_compile.kernels.providers import EMULATED, PROVIDERS, reasons_against
from loka_compile.spec.decision import Candidate
from loka_compile.spec.options import Options
from loka_compile.spec.recipes import RECIPES, Recipe
from loka_compile.spec.site import Site
from loka_compile.spec.target import Target


@dataclass(frozen=True)
class Fit:
    """One candidate at one site.

    multiple: what its kernel wants K and N to be multiples of. fuses: the kernel has an epilogue for operands that are
    scaled so. takes_epilogue: it takes the site's own epilogue. against: what keeps it from running here; empty if it
    can. whatever_its_error: that alone decides, so that no error need be looked at.
    """

    candidate: Candidate
    site: Site
    multiple: int
    fuses: bool
    takes_epilogue: bool
    against: tuple[str, ...] = ()
    whatever_its_error: bool = False

    @property
    def recipe(self) -> Recipe:
        return RECIPES[self.candidate.recipe]

    @property
    def provider(self) -> str:
        return self.candidate.provider

    @cached_property
    def run(self) -> Site:
        """The site with K and N padded as the kernel wants them."""
        return self.site.padded(self.multiple)

    @property
    def padding(self) -> str:
        """`padded: K 109 -> 112`, or ""."""
        return self.site.padding(self.run)


def candidates(options: Options) -> Iterator[Candidate]:
    """Recipes by providers. Emulation has numerics and no speed, so it competes only where speed does not matter."""
    for recipe in options.recipes:
        for name, provider in PROVIDERS.items():
            if recipe in provider.speaks and (name != EMULATED or options.min_speedup == 0):
                yield Candidate(recipe, name)


def fits_of(site: Site, target: Target, options: Options) -> list[Fit]:
    """Every candidate at a site."""
    speed, choices = bool(options.min_speedup), options.lower_choices
    return [fit(candidate, site, target, speed, choices) for candidate in candidates(options)]


def fit(candidate: Candidate, site: Site, target: Target, for_speed: bool = True, lower_choices: bool = False) -> Fit:
    """How the candidate would run at the site.

    for_speed: a kernel that can run and yet is no use here is refused. lower_choices: a product whose result decides a
    choice may be rounded.
    """
    recipe, provider = RECIPES[candidate.recipe], PROVIDERS[candidate.provider]
    fusing = fuses(candidate, site)
    found = Fit(candidate, site, provider.multiple(recipe, target), fusing, fusing and takes_epilogue(site))
    if site.decides and not lower_choices:
        why = f"its result decides what {site.decides} picks, and a rounded one picks another (lower_choices=False)"
        return replace(found, against=(why,), whatever_its_error=True)
    if site.dtype == torch.float64 and for_speed:
        why = "its operands are float64, which nobody writes who can do with less"
        return replace(found, against=(why,), whatever_its_error=True)
    same = recipe.dtype == site.dtype or (recipe.scaling == "none" and site.dtype.itemsize <= recipe.itemsize)
    fused_as_it_is = recipe.dtype == site.dtype and fusing and site.epilogue
    if same and not fused_as_it_is:
        why = f"the operands are {str(site.dtype).removeprefix('torch.')} already"
        return replace(found, against=(why,), whatever_its_error=True)
    against = reasons_against(candidate.provider, site, recipe, target)
    if not against and (other := provider.same_as(target)):
        against = [f"its kernels are those of {other} on this {target.device}, which runs them without it"]
    elif for_speed and not against and (why := provider.no_use(site, recipe, target)):
        against = [why]
    return replace(found, against=tuple(against))
