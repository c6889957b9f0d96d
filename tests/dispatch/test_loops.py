"""Loops around a product: each computes what it says, together with others and over any number of rows."""

from __future__ import annotations

import itertools

import pytest
import sympy
import torch

from loka_compile import compat
from loka_compile.dispatch import loops
from loka_compile.kernels.providers import PROVIDERS
from loka_compile.spec.recipes import RECIPES
from loka_compile.spec.site import Site
from loka_compile.spec.sizes import Sizes

WIDE = torch.float32


def site(sizes):
    return Site("fc#0:output", "bmm", "output", *map(sympy.Integer, vars(sizes).values()), WIDE)


def empty(shape, dtype):
    return torch.empty(shape, dtype=dtype)


def test_loops_of_one_compilation_run_one_by_one():
    """Each over its own rows, into memory of its own, whatever the others are."""
    thin = Sizes(8, 3, 1, 4)
    asked = [
        loops.cast(RECIPES["int8_rowwise"], WIDE, True, 64),
        loops.cast(RECIPES["bf16"], WIDE, False, 1024),
        loops.rescale(PROVIDERS["aten"].behind(RECIPES["uint8_affine"], WIDE), WIDE),
        loops.rescale(PROVIDERS["onednn"].behind(RECIPES["int8_rowwise_w7"], WIDE), WIDE),
        loops.thin(site(thin), thin),
    ]
    parts = [loop for extra in asked for loop in extra.loops]
    ready = compat.compile_together([loop.function for loop in parts], [loop.inputs(empty) for loop in parts])
    torch.manual_seed(0)
    for index, loop in enumerate(parts):
        own = loop.inputs(lambda shape, dtype: torch.rand(6 if shape[0] > 1 else 1, *shape[1:]).mul(9).to(dtype))
        run = ready(index, own)
        for _ in range(2):
            for out, expected in zip(run(), loop.function(*own), strict=True):
                assert out.dtype == expected.dtype and out.shape == expected.shape
                off = 1.01 if out.dtype == torch.int8 else 1e-5  # a tie may round the other way
                torch.testing.assert_close(out.float(), expected.float(), rtol=1e-5, atol=off)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_name_tells_what_a_loop_does(recipe):
    recipe = RECIPES[recipe]
    ways = itertools.product((torch.float32, torch.float16), (True, False), (16, 900))
    names = {loops.cast(recipe, *way).loop.name for way in ways}
    assert len(names) == (8 if recipe.scaling == "row" else 4)


def test_unsigned_and_signed_bytes_by_rows_share_a_time():
    a, b = (loops.cast(RECIPES[name], WIDE, False, 64).loop.name for name in ("int8_rowwise", "uint8_rowwise"))
    assert a == b != loops.cast(RECIPES["uint8_affine"], WIDE, False, 64).loop.name


def test_what_a_kernel_does_itself_is_no_loop():
    assert PROVIDERS["aten"].behind(RECIPES["fp8_rowwise"], WIDE) is None is loops.rescale(None, WIDE)
    assert PROVIDERS["aten"].behind(RECIPES["bf16"], torch.bfloat16) is None
    assert loops.thin(site(Sizes(1, 8, 1, 4)), Sizes(1, 8, 1, 4)) is None
    assert loops.thin(site(Sizes(8, 8, 2, 4)), Sizes(8, 8, 2, 4)) is None
