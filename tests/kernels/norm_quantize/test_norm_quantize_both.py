"""loka::norm_quantize_both: the Triton kernels (interpreted where there is no GPU) and the reference."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loka_compile.kernels import norms
from loka_compile.kernels.launch import arch_of
from loka_compile.kernels.norm_quantize import norm_quantize_both as both
from loka_compile.kernels.norm_quantize.norm_quantize_both import (
    NormQuantizeBoth,
    empty_outputs,
    launches,
    norm_quantize_both,
    reference,
    specimens,
)
from loka_compile.kernels.norms import ACTIVATIONS, NORMS, RowNorm
from loka_compile.spec.chips import CHIPS
from tests.kernels.norm_quantize.test_norm_quantize_backward import (
    DEVICE,
    E4M3,
    E5M2,
    EPS,
    HALF_ULP,
    ROWS,
    SMALLEST,
    TOP,
    draw,
)


def kernel(x, weight, bias, norm, block, activation, dtype, save=True):
    """What the op does with tensors on a GPU; what the interpreter would round wrongly, torch rounds."""
    call = NormQuantizeBoth(x, weight, bias, RowNorm(norm, block, activation, dtype, EPS, save))
    outputs = empty_outputs(call)
    arch = arch_of(x) if x.is_cuda else "sm_90"
    for launch in launches(call, outputs, arch):
        out = launch.args.get("out")
        wide = {} if x.is_cuda or out is None else {"out": torch.full(out.shape, float("nan"))}
        replace(launch, args={**launch.args, **wide}).run()
        if wide:
            out.copy_(wide["out"])
    return outputs


def check(got, x, weight, bias, norm, block, activation, dtype):
    """Every value is the format's nearest one to float64's, but for what float32 arithmetic loses."""
    out, scale, copy, copy_scale, statistics = got
    n, wanted = norms.normalize(x.double(), norm, block, EPS)
    y = norms.activate(norms.affine(n, weight, bias), activation)
    rows, columns = x.shape
    shapes = [tuple(each.shape) for each in got]
    assert shapes == [(rows, columns), (rows, 1), (columns, rows), (columns, 1), tuple(wanted.shape)]
    size = n.abs().amax() + 1
    lost = 1e-5 * size * (1 + y.abs().amax()) * (1 if norm != "layer" else size)  # a mean cancels
    for q, step, exact in ((out, scale, y), (copy, copy_scale, y.t())):
        amax = exact.abs().amax(1, keepdim=True).clamp(min=1e-12)
        assert ((step.double() * TOP[dtype] - amax).abs() <= 1e-6 * amax + lost).all()
        rounding = exact.abs() * HALF_ULP[dtype] + SMALLEST[dtype] / 2 * step.double()
        assert ((q.double() * step.double() - exact).abs() <= 1.001 * rounding + lost).all()
    torch.testing.assert_close(statistics.double(), wanted, rtol=1e-4, atol=1e-5 * float(size))


@settings(max_examples=80, deadline=None)
@given(
    rows=st.sampled_from([1, 2, 5, 33, 70]),
    shape=st.sampled_from(ROWS),
    norm=st.sampled_from(NORMS),
    activation=st.sampled_from(ACTIVATIONS),
    weights=st.integers(0, 2),
    dtype=st.sampled_from([E4M3, E5M2]),
    of=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_kernels_and_reference_against_float64(rows, shape, norm, activation, weights, dtype, of, seed):
    columns, block = shape
    _, x, _, weight, bias = draw(rows, columns, 0, of, seed, weights, norm, block)
    named = norm, block, activation, dtype
    check(kernel(x, weight, bias, *named), x, weight, bias, *named)
    check(reference(NormQuantizeBoth.bind(x, weight, bias, *named, EPS, True)), x, weight, bias, *named)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_never_becomes_an_ordinary_number(bad):
    _, x, _, weight, bias = draw(33, 64, 0, torch.float32, 0, 2, "none", 0)
    x[3, 5] = bad
    for found in (
        kernel(x, weight, bias, "none", 0, "none", E4M3),
        reference(NormQuantizeBoth.bind(x, weight, bias, "none", 0, "none", E4M3, EPS, True)),
    ):
        out, scale, copy, copy_scale, _ = found
        assert out[3, 5].isnan() and copy[5, 3].isnan() and out.isnan().sum() == copy.isnan().sum() == 1
        assert scale.isfinite().all() and copy_scale.isfinite().all()


def test_a_program_goes_through_many_tiles(monkeypatch):
    _, x, _, weight, bias = draw(200, 64, 0, torch.float32, 0, 2, "layer", 0)
    whole = kernel(x, weight, bias, "layer", 0, "relu", E4M3)
    monkeypatch.setattr(both, "PARTS", 2)
    assert all(
        torch.equal(a.float(), b.float())
        for a, b in zip(whole, kernel(x, weight, bias, "layer", 0, "relu", E4M3), strict=True)
    )


@pytest.mark.parametrize("rows", [0, 1])
def test_one_row_and_none(rows):
    x = torch.randn(rows, 64, device=DEVICE)
    out, scale, copy, copy_scale, statistics = norm_quantize_both(x, None, None, "rms", 0, "relu", E4M3, EPS, False)
    assert (out.shape, scale.shape, copy.shape) == ((rows, 64), (rows, 1), (64, rows))
    assert copy_scale.shape == (64, 1) and statistics.numel() == 0


@pytest.mark.parametrize("save", [True, False])
def test_opcheck(save):
    x, vector = torch.randn(7, 64, device=DEVICE), torch.randn(64, device=DEVICE)
    args = x, vector, vector, "layer", 0, "gelu", E4M3, EPS, save
    torch.library.opcheck(torch.ops.loka.norm_quantize_both.default, args, test_utils=["test_faketensor"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": torch.bfloat16}, "out FP8"),
        ({"x": torch.randn(2, 3, 64)}, "\\(R, N\\)"),
        ({"norm": "batch"}, "norm must be one of"),
    ],
)
def test_bad_arguments(change, message):
    given = {"x": torch.randn(7, 64), "norm": "rms", "dtype": E4M3} | change
    with pytest.raises(ValueError, match=message):
        norm_quantize_both(given["x"], None, None, given["norm"], 0, "relu", given["dtype"], EPS, False)


@pytest.mark.parametrize("arch", CHIPS)
def test_specimens_are_launches_on_no_memory(arch):
    found = specimens(arch)
    assert len({each.name for each in found}) == len(found)
    assert all(
        value.is_meta for each in found for value in each.launch.args.values() if isinstance(value, torch.Tensor)
    )
