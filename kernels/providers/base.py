"""What a provider is: a kernel library that can run some recipes, and all that loka knows of it."""

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
    that calls it, as frozen_gemm.py has the operands.
    """

    kernel: str
    product: Callable[..., Tensor]


@dataclass(frozen=True)
class Behind:
    """What Inductor fuses with what reads the product.

    name: of what is done, by which its time is remembered. made: dtype of what the kernel leaves, (M, N).
    finish(product, step, smallest, scale, sums): the result. Step and smallest are (M, 1), of the rows, scale and sums
    (1, N), of the columns.
    """

    name: str
    made: torch.dtype
    finish: Callable[..., Tensor]


class Provider:
    """One kernel library. A newcomer is a class of this kind in a file of its own in this folder, and `PROVIDER`, its
    object, at the end of the file: nothing else names it.

    name: as plans have it. speaks: names of the recipes it has a kernel for. rank: its place where times are equal.
    native: PyTorch's own, or fused with what stands behind the product: it need not win by a margin.
    epilogue: scalings of operands whose product takes a norm, an activation or a quantization into its epilogue.
    tile: what N has to be a multiple of for that. widest: columns that a tile can see whole.
    """

    name: ClassVar[str]
    speaks: ClassVar[tuple[str, ...]]
    rank: ClassVar[int] = 50
    native: ClassVar[bool] = False
    epilogue: ClassVar[tuple[str, ...]] = ()
    tile: ClassVar[int] = 1
    widest: ClassVar[int] = 0

    def multiple(self, recipe: Recipe, target: Target) -> int:
        """What K and N have to be multiples of; others are padded with zeros."""
        return 1

    def reasons_against(self, site: Site, recipe: Recipe, target: Target) -> list[str]:
        """What keeps it from running a recipe that it speaks; empty: it can, and is exact on every operand."""
        raise NotImplementedError

    def no_use(self, site: Site, recipe: Recipe, target: Target) -> str:
        """Why it can run the recipe and yet is no use here, so that nobody need time it; "" if it may be of use."""
        return ""

    def same_as(self, target: Target) -> str:
        """Name of the provider whose very kernels it runs there, "" if they are its own. Nobody asks it then, not even
        where speed is no matter; a plan that names it is followed."""
        return ""

    def product(
        self, a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, out_dtype: torch.dtype
    ) -> Tensor:
        """(a * a_scale) @ (b * b_scale), as kernels/gemm/product.py specifies it."""
        raise NotImplementedError

    def traced(self, a: Tensor, a_scale: Tensor | None) -> str:
        """What generated code calls for `product`, where Inductor may trace through it and fuse with it; "" where it
        must not, so that it is one opaque operator."""
        return ""

    def frozen(self, weight_dtype: torch.dtype, scaling: str, memory_planned: bool) -> Frozen | None:
        """Its own operator for a right operand that is a parameter; None: loka::frozen_gemm with `product`.

        memory_planned: the graph's sizes are numbers, and Inductor gives an operator memory to write to.
        """
        return None

    def behind(self, recipe: Recipe, dtype: torch.dtype) -> Behind | None:
        """What the product leaves to be done before it is (M, N) in `dtype`; None: nothing."""
        return None

    def timed(
        self, a: Callable[[], Any], b: Callable[[], Any], scales: tuple[Any, Any], out: Callable[[torch.dtype], Any],
        dtype: torch.dtype,
    ) -> Callable[[], Any]:  # fmt: skip
        """The kernel as it runs in a graph, on these operands, for timing it. out(dtype): memory for the result."""
        return lambda: self.product(a(), scales[0], b(), scales[1], dtype)


def missing(package: str, extra: str = "") -> list[str]:
    """Empty if the package is installed; else one reason, and what to do where an extra of ours brings it. It is not
    imported: `import loka_compile` stays light."""
    if _there(package):
        return []
    how = f": pip install loka-compile[{extra}]" if extra else ""
    return [f"{package} is not installed{how}"]


@functools.cache
def _there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def is_batch(site: Site) -> bool:
    return site.batch != 1 or site.op in ("bmm", "baddbmm")
