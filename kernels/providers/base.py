"""The contract of a provider: a kernel library that can run some recipes, with all that loka knows about it."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from loka_compile.spec.recipes import Recipe
from loka_compile.spec.site import Site
from loka_compile.spec.target import Target


@dataclass(frozen=True)
class Frozen:
    """A provider's own operator for a product with a parameter.

    kernel: what generated code calls. product(a, a_scale, weight, transposed, more, out_dtype): the traced function
    that calls it; operands as in frozen_gemm.py.
    """

    kernel: str
    product: Callable[..., Tensor]


@dataclass(frozen=True)
class Behind:
    """The work that a product leaves to be done, which Inductor fuses with what reads the product.

    name: under which its time is remembered.
    made: the dtype of the kernel's result, (M, N). finish(product, step, smallest, scale, sums): the final result. step
        and smallest are (M, 1), one a row; scale and sums are (1, N), one a column.
    """

    name: str
    made: torch.dtype
    finish: Callable[..., Tensor]


class Provider:
    """One kernel library. To add one, write a file in this folder with a subclass and, at its end, `PROVIDER`, its
    object; nothing else names it.

    name: its name in plans.
    speaks: the recipes it has a kernel for.
    rank: its place among equal times.
    native: PyTorch's own, or fused with what follows the product, so it need not win by a margin.
    epilogue: the scalings of operands whose product takes a norm, an activation or a quantization into its epilogue.
    tile: N must be a multiple of it for that.
    widest: the most columns a tile sees whole.
    """

    name: ClassVar[str]
    speaks: ClassVar[tuple[str, ...]]
    rank: ClassVar[int] = 50
    native: ClassVar[bool] = False
    epilogue: ClassVar[tuple[str, ...]] = ()
    tile: ClassVar[int] = 1
    widest: ClassVar[int] = 0

    def multiple(self, recipe: Recipe, target: Target) -> int:
        """K and N must be multiples of this; smaller operands are padded with zeros."""
        return 1

    def reasons_against(self, site: Site, recipe: Recipe, target: Target) -> list[str]:
        """Why it cannot run a recipe that it speaks, or is not exact on some operand; [] if it can."""
        raise NotImplementedError

    def no_use(self, site: Site, recipe: Recipe, target: Target) -> str:
        """Why it need not be timed here although it can run the recipe; "" if it may be of use."""
        return ""

    def same_as(self, target: Target) -> str:
        """The provider whose very kernels it runs on this target; "" if they are its own. Then it is not tried here,
        not even if speed does not matter; a plan that names it is followed."""
        return ""

    def product(
        self, a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, out_dtype: torch.dtype
    ) -> Tensor:
        """(a * a_scale) @ (b * b_scale), as kernels/gemm/product.py specifies it."""
        raise NotImplementedError

    def traced(self, a: Tensor, a_scale: Tensor | None) -> str:
        """The callee in generated code for `product`, if Inductor may trace through it and fuse with it. "" if it must
        stay one opaque operator."""
        return ""

    def frozen(self, weight_dtype: torch.dtype, scaling: str, memory_planned: bool) -> Frozen | None:
        """Its own operator for a right operand that is a parameter; None takes loka::frozen_gemm with `product`.

        memory_planned: all sizes are numbers, so Inductor gives an operator memory to write to.
        """
        return None

    def behind(self, recipe: Recipe, dtype: torch.dtype) -> Behind | None:
        """The work the product leaves before it is (M, N) in `dtype`; None for none."""
        return None

    def timed(
        self,
        a: Callable[[], Any],
        b: Callable[[], Any],
        scales: tuple[Any, Any],
        out: Callable[[torch.dtype], Any],
        dtype: torch.dtype,
    ) -> Callable[[], Any]:
        """The kernel as it runs in a graph, on these operands, to be timed. out(dtype): memory for the result."""
        return lambda: self.product(a(), scales[0], b(), scales[1], dtype)


def missing(package: str, extra: str = "") -> list[str]:
    """[] if the package is installed; else one reason, with the extra of ours that brings it. The package is not
    imported, so that `import loka_compile` stays light."""
    if _there(package):
        return []
    how = f": pip install loka-compile[{extra}]" if extra else ""
    return [f"{package} is not installed{how}"]


@functools.cache
def _there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def is_batch(site: Site) -> bool:
    return site.batch != 1 or site.op in ("bmm", "baddbmm")
