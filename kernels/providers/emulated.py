"""emulated: any recipe's exact numerics anywhere, in float32. It judges a plan; it is never fast."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from loka_compile.kernels.gemm.product import reference
from loka_compile.kernels.providers.base import Provider
from loka_compile.spec.recipes import RECIPES, Recipe
from loka_compile.spec.site import Site
from loka_compile.spec.target import Target


class Emulated(Provider):
    name: ClassVar[str] = "emulated"
    speaks: ClassVar[tuple[str, ...]] = tuple(RECIPES)
    rank: ClassVar[int] = 100

    def reasons_against(self, site: Site, recipe: Recipe, target: Target) -> list[str]:
        """Accepts everything."""
        return []

    def product(
        self, a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, out_dtype: torch.dtype
    ) -> Tensor:
        return reference(a, a_scale, b, b_scale, out_dtype)


PROVIDER = Emulated()
