"""loka::gemm_gradient: the Triton kernels (interpreted where there is no GPU) and the reference, against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loka_compile.kernels.gemm.gemm_gradient import (
    GemmGradient,
    empty_outputs,
    gemm_gradient,
    launches,
    reference,
    specimens,
)
from loka_compile.kernels.launch import arch_of
from loka_compile.spec.chips import CHIPS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF_ULP = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def kernel(grad, weight, x, gain, summed, arch="sm_90"):
    """What the op does with tensors on a GPU; what the interpreter would round wrongly, torch rounds."""
    arch = arch_of(x) if x.is_cuda else arch
    call = GemmGradient(grad, weight, x, gain, summed)
    out, total = outputs = empty_outputs(call)
    for launch in launches(call, outputs, arch):
        if x.is_cuda or x.dtype == torch.float16:
            launch.run()
            continue
        assert not launch.constants.get("TMA_OUT"), "a descriptor's dtype is that of its tensor"
        given = {name: each for name, each in (("out", out), ("total", total)) if name in launch.args}
        wide = {name: torch.full(each.shape, float("nan")) for name, each in given.items()}
        replace(launch, args={**launch.args, **wide}).run()
        for name, each in given.items():
            each.copy_(wide[name])
    return outputs


def check(got, grad, weight, x, gain, summed):
    out, total = got
    exact = torch.where(x.double() <= 0, 0.0, grad.double() @ weight.double() * gain)
    size = grad.double().abs() @ weight.double().abs() * gain
    ulp = HALF_ULP[x.dtype]
    assert (out.dtype, out.shape, total.shape) == (x.dtype, x.shape, ((x.shape[1],) if summed else (0,)))
    assert ((out.double() - exact).abs() <= 1.001 * ulp * exact.abs() + 2e-6 * size + 2.0**-25).all()
    assert (out[x <= 0] == 0).all()
    if summed:
        slack = ulp * exact.sum(0).abs() + 4e-6 * size.sum(0) + 2.0**-25
        assert ((total.double() - exact.sum(0)).abs() <= 1.001 * slack).all()


def draw(m, n, k, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    grad, weight, x = (torch.randn(s, generator=generator) for s in ((m, k), (k, n), (m, n)))
    return grad.to(DEVICE, dtype), (weight / max(k, 1) ** 0.5).to(DEVICE, dtype), x.relu().to(DEVICE, dtype)


@settings(max_examples=40, deadline=None)
@given(
    m=st.sampled_from([1, 5, 64, 131, 200]),
    n=st.sampled_from([8, 16, 40, 131, 256]),
    k=st.sampled_from([1, 8, 64, 97, 160]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
    arch=st.sampled_from(["sm_89", "sm_90", "gfx942"]),
    gain=st.sampled_from([1.0, 1.25]),
    summed=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_kernels_and_reference_against_float64(m, n, k, dtype, arch, gain, summed, seed):
    drawn = draw(m, n, k, dtype, seed)
    check(reference(GemmGradient.bind(*drawn, gain, summed)), *drawn, gain, summed)
    arch = "sm_89" if dtype == torch.bfloat16 and arch == "sm_90" else arch
    check(kernel(*drawn, gain, summed, arch), *drawn, gain, summed)


def test_what_is_not_finite_never_becomes_an_ordinary_number():
    grad, weight, x = draw(5, 16, 8, torch.float16, 3)
    x[1, 2], x[2, 3], grad[3, 0] = float("nan"), float("inf"), float("nan")
    x[3, 4], x[3, 5] = 0.0, 1.0
    for out, total in (kernel(grad, weight, x, 1.25, True), reference(GemmGradient.bind(grad, weight, x, 1.25, True))):
        assert out[1, 2].isfinite() and out[2, 3].isfinite()  # the gradient passes, as torch's does
        assert out[3, 4] == 0 and out[3, 5].isnan() and total[5].isnan()


def test_the_same_bits_every_time():
    drawn = draw(200, 131, 97, torch.float16, 5)
    first, second = (kernel(*drawn, 1.25, True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_no_rows_and_opcheck():
    for rows in (0, 6):
        drawn = draw(rows, 16, 8, torch.bfloat16, 5)
        assert gemm_gradient(*drawn, 1.0, True)[0].shape == (rows, 16)
        torch.library.opcheck(torch.ops.loka.gemm_gradient.default, (*drawn, 1.25, rows > 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"x": torch.ones(3, 4)},
            r"grad must be \(M, K\), weight \(K, N\) and x \(M, N\), got \[\(3, 8\), \(8, 16\), \(3, 4\)\]",
        ),
        (
            {"grad": torch.ones(3, 8, dtype=torch.float16)},
            "all must be bfloat16 or all float16, got torch.float16, torch.b",
        ),
    ],
)
def test_bad_arguments(change, message):
    args = {"grad": (3, 8), "weight": (8, 16), "x": (3, 16)}
    args = {name: torch.ones(shape, dtype=torch.bfloat16) for name, shape in args.items()} | change
    with pytest.raises(ValueError, match=message):
        gemm_gradient(*args.values(), 1.0, False)


@pytest.mark.parametrize("arch", CHIPS)
def test_specimens_are_launches_on_no_memory(arch):
    for each in specimens(arch):
        assert all(value.is_meta for value in each.launch.args.values() if torch.is_tensor(value))
