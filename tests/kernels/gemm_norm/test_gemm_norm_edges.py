"""loka::gemm_norm at the edges: rows far from zero, zeros, what is not finite or beyond a given scale; and its bits."""

from __future__ import annotations

import pytest
import torch

from loka_compile.kernels.gemm_norm.epilogue import GemmNorm, empty_outputs
from loka_compile.kernels.gemm_norm.gemm_norm import reference
from loka_compile.kernels.gemm_norm.gemm_norm_launch import launches
from loka_compile.kernels.norms import ACTIVATIONS
from tests.kernels.gemm_norm.test_gemm_norm import ARCHS, DEVICE, E4M3, EPS, TOP, draw, kernel, oracle


@pytest.mark.parametrize("away", [0.0, 10.0, 100.0])
def test_variance_from_one_pass_holds_for_rows_far_from_zero(away):
    """FP8 out and nothing saved: the mean is some `away` deviations from zero, and rstd loses at most 1 %."""
    operands = draw(33, 256, 64, 0, torch.bfloat16, 7, "bws", zero_rows=False)
    operands[4] = operands[4] + away * 1.2  # the bias
    args = *operands, None, "layer", 0, "none", E4M3
    call = GemmNorm.bind(*args, EPS, False)
    (launch,) = launches(call, empty_outputs(call), "sm_90")
    assert launch.constants["ONE_PASS"]
    got, y = kernel(*args, save=False), oracle(*operands, "layer", 0, "none")[1]
    amax, out = y.abs().amax(1, keepdim=True), got[0].double() * got[1].double()
    assert ((got[1].double() * TOP[E4M3] - amax).abs() <= 0.01 * amax).all()
    assert (out - y).norm() < 0.03 * y.norm()


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_zero_rows_give_zeros(arch, norm, activation):
    operands = draw(6, 64, 32, 0, E4M3, 4)
    operands[0] = torch.zeros_like(operands[0])
    out, scale, *_ = kernel(*operands, None, norm, 0, activation, E4M3, arch)
    assert (out.float() == 0).all()
    assert (scale > 0).all() and scale.isfinite().all()


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("norm", "block"), [("none", 0), ("rms", 0), ("rms", 16), ("layer", 0)])
@pytest.mark.parametrize("where", ["a", "b", "residual", "weight", "shift"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("fixed", [False, True])
def test_what_is_not_finite_never_becomes_an_ordinary_number(arch, norm, block, where, bad, fixed):
    """In bfloat16 operands; an infinity times 0 is NaN, so b's spoils its column in every row."""
    a, _, b, _, bias, residual, weight, shift = draw(5, 64, 32, 0, torch.bfloat16, 5, "rws", zero_rows=False)
    matrices = {"a": a, "b": b, "residual": residual}
    if where in matrices:
        matrices[where][1, 3] = bad
    else:
        (weight if where == "weight" else shift)[3] = bad
    scale = torch.tensor([0.01], device=DEVICE) if fixed else None
    args = a, None, b, None, bias, residual, weight, shift, scale, norm, block, "relu", E4M3
    got, (expected, *_) = kernel(*args, arch), reference(GemmNorm.bind(*args, EPS, True))
    if norm != "none" and where in ("weight", "shift"):
        expected[:, 3] = float("nan")  # whole, though relu hides half of it in the reference
    harmed, right = got[0].float().isnan(), expected.float().isnan()
    assert torch.equal(harmed, right)
    assert harmed.any() or (where in matrices and norm != "none") or bad == float("inf")
    assert got[1].isfinite().all()
    torch.testing.assert_close(got[0].float(), expected.float(), rtol=0.13, atol=1.0, equal_nan=True)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_weight_that_could_overflow_counts_as_infinite(arch):
    operands = draw(5, 64, 32, 0, E4M3, 5, "ws", zero_rows=False)
    operands[6][3] = operands[7][7] = 2e37
    out = kernel(*operands, None, "rms", 0, "silu", E4M3, arch)[0].float()
    assert out.isnan().all(0).nonzero().flatten().tolist() == [3, 7]
    assert out.isnan().sum() == 10


def test_values_beyond_a_given_scale_are_clamped():
    a, b = torch.full((3, 16), 100.0, device=DEVICE), torch.ones(16, 16, device=DEVICE)
    b[1] = -1
    args = a.bfloat16(), None, b.bfloat16(), *[None] * 5, torch.ones(1, device=DEVICE), "none", 0, "none"
    for out, *_ in (kernel(*args, E4M3), reference(GemmNorm.bind(*args, E4M3, EPS, False))):
        assert out[:, 0].float().tolist() == [448.0] * 3
        assert out[:, 1].float().tolist() == [-448.0] * 3


def test_the_same_bits_every_time_and_for_a_row_alone():
    operands = draw(37, 131, 48, 0, E4M3, 6, "ws")
    first, second = (kernel(*operands, None, "layer", 0, "silu", E4M3) for _ in range(2))
    assert all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in zip(first, second, strict=True))
    a, a_scale, *rest = operands
    alone = kernel(a[7:8].contiguous(), a_scale[7:8].contiguous(), *rest, None, "layer", 0, "silu", E4M3)
    for whole, part in zip(first, alone, strict=True):
        torch.testing.assert_close(whole[7:8].float(), part.float(), rtol=0.126, atol=1e-6)
