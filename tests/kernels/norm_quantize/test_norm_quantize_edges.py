"""loka::norm_quantize at the edges: the largest values, zeros, what is not finite, and what a given scale clamps."""

from __future__ import annotations

import pytest
import torch

from loka_compile.kernels.norm_quantize.norm_quantize import NormQuantize, reference
from loka_compile.kernels.norms import ACTIVATIONS, NORMS
from tests.kernels.norm_quantize.test_norm_quantize import DEVICE, E4M3, E5M2, EPS, TOP, draw, kernel


@pytest.mark.parametrize("exponent", [-30, 15])
def test_rows_quantized_without_a_norm_at_the_edges_of_float32(exponent):
    x, _, _ = draw(8, 48, exponent, torch.float32, 0, 0)
    for dtype in (E4M3, E5M2, torch.int8):
        args = x, None, None, None, "none", 0, "none", dtype
        got, expected = kernel(*args), reference(NormQuantize.bind(*args, EPS, True))
        torch.testing.assert_close(got[1], expected[1], rtol=1e-6, atol=0)
        assert (got[0][x == 0].float() == 0).all()
        torch.testing.assert_close(got[0].float(), expected[0].float(), rtol=0.13, atol=1.0 if exponent > 0 else 0.1)


def test_largest_float32_values():
    top = torch.finfo(torch.float32).max
    x = torch.tensor([[top, -top, 1.0, 0.0]], device=DEVICE)
    out, scale, _ = kernel(x, None, None, None, "none", 0, "none", E4M3)
    assert out.float().tolist() == [[448.0, -448.0, 0.0, 0.0]]
    torch.testing.assert_close(scale, torch.tensor([[top / 448]], device=DEVICE))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [E4M3, E5M2, torch.int8])
def test_zero_rows_give_zeros(norm, activation, dtype):
    for run in (kernel, lambda *args: reference(NormQuantize.bind(*args, EPS, True))):
        out, scale, _ = run(torch.zeros(3, 32, device=DEVICE), None, None, None, norm, 0, activation, dtype)
        assert (out.float() == 0).all()
        assert (scale > 0).all()
        assert scale.isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize(("norm", "block"), [("none", 0), ("rms", 0), ("rms", 16), ("layer", 0)])
def test_what_is_not_finite_never_becomes_an_ordinary_number(bad, fixed, norm, block):
    x, weight, bias = draw(4, 32, 0, torch.float32, 3, 2, zero_rows=False)
    x[1, 5] = bad
    scale = torch.tensor([0.01], device=DEVICE) if fixed else None
    for dtype in (E4M3, E5M2):
        args = x, weight, bias, scale, norm, block, "none", dtype
        got, expected = kernel(*args), reference(NormQuantize.bind(*args, EPS, True))
        harmed = got[0].float().isnan()
        assert torch.equal(harmed, expected[0].float().isnan())
        assert harmed[1, 5]
        assert not harmed[[0, 2, 3]].any()
        assert got[1].isfinite().all()
        if norm == "none":
            assert harmed.sum() == 1
        if block:
            assert not harmed[1, 16:].any()
        torch.testing.assert_close(got[0].float(), expected[0].float(), rtol=0.26, atol=0.1, equal_nan=True)


@pytest.mark.parametrize("activation", ["relu", "hard_swish", "silu", "gelu"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_activation_does_not_hide_it(activation, bad):
    x = torch.ones(2, 16, device=DEVICE)
    x[0, 3] = bad
    out, _, _ = kernel(x, None, None, None, "none", 0, activation, E4M3)
    assert torch.equal(out.float().isnan().nonzero(), torch.tensor([[0, 3]], device=DEVICE))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_int8_row_says_it_by_its_scale(bad):
    x = torch.randn(3, 40, device=DEVICE)
    x[1, 2] = bad
    for run in (kernel, lambda *args: reference(NormQuantize.bind(*args, EPS, True))):
        scale = run(x, None, None, None, "none", 0, "none", torch.int8)[1]
        assert scale.isfinite().flatten().tolist() == [True, False, True]


def test_values_beyond_a_given_scale_are_clamped():
    x = torch.tensor([[1e6, -1e6, 3.0, 0.0]], device=DEVICE)
    args = x, None, None, torch.ones(1, device=DEVICE), "none", 0, "none"
    for dtype in (E4M3, E5M2):
        for out, *_ in (kernel(*args, dtype), reference(NormQuantize.bind(*args, dtype, EPS, False))):
            assert out.float().tolist() == [[TOP[dtype], -TOP[dtype], 3.0, 0.0]]
