"""The loops around a product that Inductor writes: casts of operands, what brings a result to its dtype, products of
one row or column. Each as a function to be compiled and timed (timing.py).

A loop writes into memory that is there, as in a graph that Inductor has planned, and its first dimension may be any.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from loka_compile.kernels.providers.base import Behind
from loka_compile.kernels.quantize import quantize as quantization
from loka_compile.spec.recipes import Recipe
from loka_compile.spec.site import Site
from loka_compile.spec.sizes import Sizes

VALUES = 2**22
LENGTHS = (16, 64, 1024)
"""A cast is measured on so many values, in rows of one of these lengths: the scales of short rows cost more."""

Function = Callable[..., tuple[Tensor, ...]]
Make = Callable[[tuple[int, ...], torch.dtype], Tensor]


@dataclass(frozen=True)
class Loop:
    """A function to be compiled and timed.

    name: its time is remembered under it. inputs(make): what the function is called with; make(shape, dtype) makes one
    tensor. values: its time is divided by that many elements.
    """

    name: str
    function: Function
    inputs: Callable[[Make], tuple[Tensor, ...]]
    values: int = VALUES


@dataclass(frozen=True)
class Extra:
    """A loop's time, or its time beyond another loop's."""

    loop: Loop
    beyond: Loop | None = None

    @property
    def loops(self) -> tuple[Loop, ...]:
        return (self.loop,) if self.beyond is None else (self.loop, self.beyond)


def cast(recipe: Recipe, dtype: torch.dtype, fused: bool, length: int) -> Extra:
    """A cast of an operand with rows of about this length. fused: what the cast adds to the pointwise operator before
    it."""
    made, scaling = recipe.operand("lhs", False)
    made = torch.int8 if scaling == "row" and made == torch.uint8 else made  # as much to do
    length = cast_length(recipe, length)
    name = f"{_name(dtype)} to {_name(made)} {scaling} {length}"
    inputs = functools.partial(_wide, dtype=dtype, length=length)
    if not fused:
        return Extra(Loop(f"cast {name}", functools.partial(_cast, made=made, scaling=scaling), inputs))
    both = functools.partial(_made_and_cast, made=made, scaling=scaling)
    return Extra(Loop(f"cast fused {name}", both, inputs), pointwise(dtype, length))


def cast_length(recipe: Recipe, length: int) -> int:
    """The nearest of LENGTHS, in octaves. Only scales by row depend on it."""
    if recipe.scaling != "row":
        return LENGTHS[-1]
    return min(LENGTHS, key=lambda known: abs(math.log2(known / length)))


def rescale(behind: Behind | None, dtype: torch.dtype) -> Extra | None:
    """What it adds to a pointwise operator that it finishes the product that it reads. None where the kernel finishes
    its product itself."""
    if behind is None:
        return None
    length = LENGTHS[-1]
    inputs = functools.partial(_product_and_scales, dtype=behind.made, length=length)
    name = f"rescale {behind.name} {_name(behind.made)} to {_name(dtype)}"
    return Extra(Loop(name, functools.partial(_finished, finish=behind.finish), inputs), pointwise(dtype, length))


def thin(site: Site, sizes: Sizes) -> Extra | None:
    """A batch of products with a dimension of 1, which Inductor compiles as pointwise code. None for any other."""
    if sizes.batch == 1 or min(sizes.M, sizes.N, sizes.K) > 1:
        return None
    inputs = functools.partial(_pair, dtype=site.dtype, sizes=sizes)
    return Extra(Loop(f"product {_name(site.dtype)} {sizes}", _product, inputs, values=1))


def pointwise(dtype: torch.dtype, length: int) -> Loop:
    return Loop(f"pointwise {_name(dtype)} {length}", _relu, functools.partial(_wide, dtype=dtype, length=length))


# ---------------------------------------------------------------- functions


def _relu(x: Tensor) -> tuple[Tensor, ...]:
    return (x.relu(),)


def _cast(x: Tensor, made: torch.dtype, scaling: str) -> tuple[Tensor, ...]:
    return (x.to(made),) if scaling == "none" else quantization.reference(x, made, scaling, -1)


def _made_and_cast(x: Tensor, made: torch.dtype, scaling: str) -> tuple[Tensor, ...]:
    return x.relu(), *_cast(x.relu(), made, scaling)


def _finished(*made: Tensor, finish: Callable[..., Tensor]) -> tuple[Tensor, ...]:
    return (finish(*made).relu(),)


def _product(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    return (torch.bmm(a, b),)  # a matmul fixes the size of the batch, on torch 2.12


# ---------------------------------------------------------------- inputs


def _wide(make: Make, dtype: torch.dtype, length: int) -> tuple[Tensor, ...]:
    return (make((VALUES // length, length), dtype),)


def _product_and_scales(make: Make, dtype: torch.dtype, length: int) -> tuple[Tensor, ...]:
    rows, f = VALUES // length, torch.float32
    step, least, scale, sums = make((rows, 1), f), make((rows, 1), f), make((1, length), f), make((1, length), f)
    return make((rows, length), dtype), step, least, scale, sums


def _pair(make: Make, dtype: torch.dtype, sizes: Sizes) -> tuple[Tensor, ...]:
    b = make((sizes.batch, sizes.N, sizes.K), dtype)
    return make((sizes.batch, sizes.M, sizes.K), dtype), b.transpose(-1, -2)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
