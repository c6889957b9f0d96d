"""The operands of a kernel that is timed: random operands, scales, and memory for its result."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from loka_compile.spec.recipes import BLOCK, Recipe
from loka_compile.spec.sizes import Sizes


def operands(
    sizes: Sizes, lhs: torch.dtype, rhs: torch.dtype
) -> tuple[Callable[[], Any], Callable[[], Any], Callable[[torch.dtype], Any]]:
    """Random operands and memory for the result, made when first asked for; the right operand laid out as a linear's
    transposed weight."""
    batch = () if sizes.batch == 1 else (sizes.batch,)

    @functools.cache
    def a() -> Any:
        return random((*batch, sizes.M, sizes.K), lhs)

    @functools.cache
    def b() -> Any:
        return random((*batch, sizes.N, sizes.K), rhs).transpose(-1, -2)

    @functools.cache
    def out(dtype: torch.dtype) -> Any:
        return torch.empty((*batch, sizes.M, sizes.N), dtype=dtype, device="cpu")

    return a, b, out


def random(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    if dtype in (torch.int8, torch.int32):
        return torch.randint(-127, 128, shape, dtype=dtype, device="cpu")
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=dtype, device="cpu")
    return torch.rand(shape, dtype=torch.float32, device="cpu").sub_(0.5).to(dtype)


def unit_scales(recipe: Recipe, sizes: Sizes) -> tuple[Any, Any]:
    """Scales of 1 in the shapes that the recipe has them in."""
    if recipe.scaling == "none":
        return None, None
    if recipe.scaling == "tensor":
        return _ones(1), _ones(1)
    batch = () if sizes.batch == 1 else (sizes.batch,)
    blocks = -(-sizes.K // BLOCK) if recipe.scaling == "block" else 1
    columns = -(-sizes.N // BLOCK) if recipe.scaling == "block" else sizes.N
    return _ones(*batch, sizes.M, blocks), _ones(*batch, blocks, columns)


def _ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.float32, device="cpu")
