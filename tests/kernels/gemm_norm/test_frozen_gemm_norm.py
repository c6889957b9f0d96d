"""loka::frozen_gemm_norm: against float64, and what is kept of a parameter follows it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from loka_compile.kernels.gemm_norm.epilogue import Epilogue
from loka_compile.kernels.gemm_norm.frozen_gemm_norm import can_center, frozen_gemm_norm, without_mean
from loka_compile.kernels.norms import RowNorm
from loka_compile.kernels.quantize.quantize import reference as quantize
from tests.helpers import sqnr_db

pytestmark = pytest.mark.usefixtures("no_grad")

E4M3, BF16 = torch.float8_e4m3fn, torch.bfloat16
EPS = 1e-5


def run(x, parameter, transposed, of, bias=None, shift=None, norm="layer", centered=False, residual=None, save=False):
    """relu(norm(x @ weight + bias) + shift) in float32, of operands in `of`."""
    a, a_scale = quantize(x, of, "row", -1) if of == E4M3 else (x.to(of), None)
    rest = bias, residual, None, shift, None, norm, 0, "relu", torch.float32, EPS, save, centered
    return frozen_gemm_norm(a, a_scale, parameter, transposed, of, *rest)[0]


def exact(x, parameter, transposed, bias=None, shift=None):
    weight = parameter.detach().double()
    y = F.linear(x.double(), weight if transposed else weight.t(), None if bias is None else bias.double())
    return F.relu(F.layer_norm(y, y.shape[-1:], bias=None if shift is None else shift.double(), eps=EPS))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 17),
    st.integers(8, 131),
    st.integers(8, 67),
    st.integers(-20, 20),
    st.booleans(),
    st.booleans(),
    st.sampled_from([E4M3, BF16]),
    st.integers(0, 2**31),
)
def test_the_mean_out_of_the_parameter_is_the_norms(m, n, k, exponent, transposed, biased, of, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, k, generator=generator)
    weight = torch.randn((n, k) if transposed else (k, n), generator=generator) * 2.0**exponent
    bias = torch.randn(n, generator=generator) * 2.0**exponent if biased else None
    shift = torch.randn(n, generator=generator)
    args = x, nn.Parameter(weight), transposed, of, None if bias is None else nn.Parameter(bias), shift
    expected, bound = exact(*args[:3], *args[4:]), 18 if of == E4M3 else 40
    assert sqnr_db(run(*args), expected) > bound and sqnr_db(run(*args, centered=True), expected) > bound


@pytest.mark.parametrize("of", [E4M3, BF16])
def test_what_all_columns_share_takes_no_steps_of_the_quantization(of):
    torch.manual_seed(0)
    x, weight = torch.randn(64, 96), (torch.randn(128, 96) * 64).round() / 64
    plain, away = nn.Parameter(weight), nn.Parameter(weight + 32)
    assert sqnr_db(run(x, away, True, of, centered=True), exact(x, away, True)) > (24 if of == E4M3 else 45)
    torch.testing.assert_close(run(x, away, True, of, centered=True), run(x, plain, True, of, centered=True))
    assert sqnr_db(run(x, away, True, of), exact(x, away, True)) < (10 if of == E4M3 else 30)


@pytest.mark.parametrize("changed", ["weight", "bias"])
def test_it_follows_its_parameters(changed):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(5, 32), nn.Parameter(torch.randn(48, 32)), nn.Parameter(torch.randn(48))
    before = run(x, weight, True, E4M3, bias, centered=True)
    assert torch.equal(before, run(x, weight, True, E4M3, bias, centered=True))
    with torch.no_grad():
        {"weight": weight, "bias": bias}[changed][:24].mul_(2)
    after = run(x, weight, True, E4M3, bias, centered=True)
    assert not torch.equal(before, after) and sqnr_db(after, exact(x, weight, True, bias)) > 20
    assert torch.equal(
        after, run(x, nn.Parameter(weight.clone()), True, E4M3, nn.Parameter(bias.clone()), centered=True)
    )


def test_a_bias_keeps_its_dtype():
    bias = nn.Parameter(torch.randn(48, dtype=BF16) + 4)
    assert without_mean(bias, 0).dtype == torch.float32 and abs(without_mean(bias, 0).mean()) < 1e-6
    x, weight = torch.randn(5, 32), nn.Parameter(torch.randn(48, 32, dtype=BF16))
    assert sqnr_db(run(x, weight, True, E4M3, bias, centered=True), exact(x, weight, True, bias)) > 20


def test_where_the_mean_is_not_all_that_the_norm_takes_away():
    row = RowNorm("layer", 0, "relu", BF16, EPS, False)
    epilogue = Epilogue(None, None, None, None, None, row)
    assert can_center(48, epilogue) and can_center(48, replace(epilogue, row=replace(row, block=48)))
    x, weight = torch.randn(5, 32), nn.Parameter(torch.randn(48, 32))
    assert not can_center(48, replace(epilogue, row=replace(row, block=16)))
    for wrong in ({"norm": "rms"}, {"norm": "none"}, {"residual": torch.randn(5, 48)}, {"save": True}):
        with pytest.raises(ValueError, match="centered needs"):
            run(x, weight, True, BF16, centered=True, **wrong)


@pytest.mark.parametrize("of", [E4M3, BF16])
@pytest.mark.parametrize("centered", [False, True])
def test_opcheck(of, centered):
    a, a_scale = quantize(torch.randn(5, 32), of, "row", -1) if of == E4M3 else (torch.randn(5, 32).to(of), None)
    weight, bias = torch.randn(48, 32), torch.randn(48)
    rest = bias, None, None, None, None, "layer", 0, "relu", torch.float32, EPS, False, centered
    checks = "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"
    schema = () if of == E4M3 else ("test_schema",)  # which perturbs its inputs: not written for FP8
    torch.library.opcheck(frozen_gemm_norm, (a, a_scale, weight, True, of, *rest), test_utils=(*checks, *schema))
