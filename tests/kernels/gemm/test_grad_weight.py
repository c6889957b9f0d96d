"""loka::grad_weight: the Triton kernels (interpreted where there is no GPU) and the reference, against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loka_compile.kernels.gemm.grad_weight import GradWeight, empty_outputs, grad_weight, launches, reference, specimens
from loka_compile.kernels.launch import arch_of
from loka_compile.spec.chips import CHIPS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF_ULP = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def kernel(grad, x, arch="sm_90"):
    """What the op does with tensors on a GPU. Triton 3.7's interpreter multiplies and rounds bfloat16 wrongly: on a CPU
    only float16 goes through it."""
    call = GradWeight(grad, x)
    outputs = empty_outputs(call)
    for each in outputs:
        each.fill_(99)
    for launch in launches(call, outputs, arch_of(x) if x.is_cuda else arch):
        launch.run()
    return outputs


def check(got, grad, x):
    exact = grad.double().t() @ x.double(), grad.double().sum(0)
    sizes = grad.double().abs().t() @ x.double().abs(), grad.double().abs().sum(0)
    for ours, wanted, size in zip(got, exact, sizes, strict=True):
        assert (ours.dtype, ours.shape) == (x.dtype, wanted.shape)
        slack = 1.001 * HALF_ULP[x.dtype] * wanted.abs() + 2e-6 * size + 2.0**-25
        assert ((ours.double() - wanted).abs() <= slack).all()


def draw(rows, m, n, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows, each, generator=generator).to(DEVICE, dtype) for each in (m, n))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.sampled_from([1, 5, 64, 131, 200, 4099]),
    m=st.sampled_from([1, 8, 64, 97, 160]),
    n=st.sampled_from([1, 8, 16, 40, 131]),
    arch=st.sampled_from(["sm_89", "sm_90", "gfx942"]),
    seed=st.integers(0, 2**31),
)
def test_kernels_and_reference_against_float64(rows, m, n, arch, seed):
    for dtype in HALF_ULP:
        drawn = draw(rows, m, n, dtype, seed)
        check(reference(GradWeight.bind(*drawn)), *drawn)
        if dtype == torch.float16 or DEVICE == "cuda":
            check(kernel(*drawn, arch), *drawn)


def test_a_long_contraction_is_in_parts_and_its_sums_too():
    drawn = draw(5003, 40, 24, torch.float16, 3)
    first, finish = launches(GradWeight(*drawn), empty_outputs(GradWeight(*drawn)), "sm_90")
    assert first.constants["SPLITS"] > 1 and finish.args["sums"].shape == (first.constants["SPLITS"], 40)
    check(kernel(*drawn), *drawn)


def test_the_same_bits_every_time():
    drawn = draw(5003, 40, 131, torch.float16, 5)
    assert all(torch.equal(a, b) for a, b in zip(kernel(*drawn), kernel(*drawn), strict=True))


def test_what_is_not_finite_never_becomes_an_ordinary_number():
    grad, x = draw(9, 16, 8, torch.float16, 3)
    grad[1, 2], grad[2, 3], x[4, 5] = float("nan"), float("inf"), float("nan")
    for out, total in (kernel(grad, x), reference(GradWeight.bind(grad, x))):
        assert out[2].isnan().all() and not out[3].isfinite().any() and out[:, 5].isnan().all()
        assert total[2].isnan() and total[3].isinf() and total.isfinite().sum() == 14


def test_no_rows_and_opcheck():
    for rows in (0, 6):
        drawn = draw(rows, 16, 8, torch.bfloat16, 5)
        out, total = grad_weight(*drawn)
        assert (out.shape, total.shape) == ((16, 8), (16,)) and (rows or not out.any())
        torch.library.opcheck(torch.ops.loka.grad_weight.default, drawn)


@pytest.mark.parametrize(
    ("grad", "x", "message"),
    [
        (torch.ones(3, 8), torch.ones(4, 8), r"grad must be \(R, M\) and x \(R, N\), got \(3, 8\) and \(4, 8\)"),
        (torch.ones(3, 8), torch.ones(3, 8), "both be bfloat16 or both float16, got torch.float32 and torch.float32"),
    ],
)
def test_bad_arguments(grad, x, message):
    with pytest.raises(ValueError, match=message):
        grad_weight(grad, x)


@pytest.mark.parametrize("arch", CHIPS)
def test_specimens_are_launches_on_no_memory(arch):
    for each in specimens(arch):
        assert all(value.is_meta for value in each.launch.args.values() if torch.is_tensor(value))
