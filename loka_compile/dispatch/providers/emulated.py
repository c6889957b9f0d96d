"""emulated: any recipe's exact numerics anywhere, in float32. For judging a plan, never for speed."""

from __future__ import annotations

from loka_compile.graph.site import Site
from loka_compile.recipes import RECIPES, Recipe
from loka_compile.target import Target

NAME = "emulated"
SPEAKS = tuple(RECIPES)


def multiple(recipe: Recipe, target: Target) -> int:
    return 1


def reasons_against(site: Site, recipe: Recipe, target: Target) -> list[str]:
    """Accepts everything."""
    return []
