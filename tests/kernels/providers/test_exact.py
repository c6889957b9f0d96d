"""Every provider's 8-bit products are exact on this processor, or refused: on operands that would saturate, too."""

from __future__ import annotations

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loka_compile.kernels.providers import PROVIDERS, reasons_against
from loka_compile.kernels.quantize import quantize as quantization
from loka_compile.spec.recipes import RECIPES
from loka_compile.spec.site import Operand, Site
from loka_compile.spec.target import TARGETS

KINDS = {
    "ones": lambda shape, g: torch.ones(shape),
    "minus ones": lambda shape, g: -torch.ones(shape),
    "positive": lambda shape, g: torch.rand(shape, generator=g) + 0.5,
    "negative": lambda shape, g: -torch.rand(shape, generator=g) - 0.5,
    "signs": lambda shape, g: torch.randint(0, 2, shape, generator=g) * 2.0 - 1,
    "normal": lambda shape, g: torch.randn(shape, generator=g),
}
"""Rows whose largest values stand next to each other, of one sign, are what 16 bits cannot add."""
INTEGERS = [name for name, recipe in RECIPES.items() if recipe.dtype == torch.int8]
sizes, kinds = st.integers(1, 70), st.sampled_from(sorted(KINDS))


def site(m, k, n, nonnegative):
    lhs = Operand("x", "relu.default", nonnegative=nonnegative)
    numbers = map(sympy.Integer, (1, m, n, k))
    return Site("fc#0:output", "mm", "output", *numbers, torch.float32, static_rhs=True, lhs=lhs)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("name", INTEGERS)
@given(m=sizes, k=sizes, n=sizes, left=kinds, right=kinds, seed=st.integers(0, 9))
@settings(deadline=None, max_examples=40)
def test_products_of_bytes(provider, name, m, k, n, left, right, seed):
    recipe, generator = RECIPES[name], torch.Generator().manual_seed(seed)
    x, w = KINDS[left]((m, k), generator), KINDS[right]((k, n), generator)
    x = x if recipe.signed and (seed % 2 or recipe.affine) else x.abs()
    if reasons_against(provider, site(m, k, n, bool((x >= 0).all())), recipe, TARGETS["cpu"]):
        return
    a, a_scale = quantization.reference(x, *recipe.operand("lhs", False), -1)
    b, b_scale = quantization.reference(w, *recipe.operand("rhs", False), -2)
    wide = a_scale.double(), b_scale.double()
    exact = quantization.dequantize(a, wide[0]) @ quantization.dequantize(b, wide[1])
    out = PROVIDERS[provider].product(a, a_scale, b, b_scale, torch.float32)
    step = wide[0][..., 0] if a_scale.dim() > a.dim() else wide[0]
    largest = 256 * step + x.abs().amax(1, keepdim=True)  # of each row: what is rounded
    bound = 2.0**-21 * largest * quantization.dequantize(b, wide[1]).abs().sum(0) + 1e-30
    assert ((out.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("size", [1e-38, 1e-25, 1e-13, 1.0, 1e25, 1e38])
@pytest.mark.parametrize("provider", ["aten", "onednn"])
@pytest.mark.parametrize("name", INTEGERS)
def test_products_of_bytes_of_any_size(provider, name, size):
    """Gradients of a mean over many rows are as small as that, and a missing value may be written as 1e38."""
    recipe, generator = RECIPES[name], torch.Generator().manual_seed(0)
    if reasons_against(provider, site(32, 64, 16, True), recipe, TARGETS["cpu"]):
        return
    x, w = torch.rand(32, 64, generator=generator) + 0.1, 0.01 * torch.randn(64, 16, generator=generator)
    a = quantization.reference(x * size, *recipe.operand("lhs", False), -1)
    b = quantization.reference(w, *recipe.operand("rhs", False), -2)
    out, exact = PROVIDERS[provider].product(*a, *b, torch.float32).double(), (x * size).double() @ w.double()
    error = (out - exact).norm() / exact.norm()
    assert error < 0.02 or (size == 1e-38 and (out - exact).norm() < 1e-30), error  # amax is floored at 1e-30


def test_where_nothing_is_refused_something_was_tested():
    """On any processor int8 has an exact kernel for signed and for unsigned activations."""
    for nonnegative in (False, True):
        where = site(8, 8, 8, nonnegative)
        runs = [
            (name, provider)
            for name in INTEGERS
            for provider in ("aten", "onednn")
            if not reasons_against(provider, where, RECIPES[name], TARGETS["cpu"])
        ]
        assert ("int8_rowwise", "aten") in runs and ("int8_rowwise_w7", "onednn") in runs
