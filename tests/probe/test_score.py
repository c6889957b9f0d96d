"""The three errors against float64 oracles, and recipes' numerics against their specification."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loka_compile.kernels.quantize import quantize
from loka_compile.probe.score import (
    ErrorScore,
    emulate,
    exact,
    median_rel,
    mere,
    product,
    score,
    sqnr_db,
    subsample,
)
from loka_compile.spec.recipes import RECIPES


def normal(*shape, seed=0, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(-30, 30), st.floats(1e-4, 2.0), st.integers(0, 99)
)
@settings(max_examples=50, deadline=None)
def test_errors_are_their_definitions(shape, exponent, noise, seed):
    ref = normal(*shape, seed=seed, scale=2.0**exponent)
    out = ref * (1 + noise * normal(*shape, seed=seed + 1))
    r, o = ref.double().numpy(), out.double().numpy()
    relative = np.abs(o - r) / np.maximum(np.abs(r), 1e-2 * np.sqrt(np.mean(r**2, axis=-1, keepdims=True)))
    assert mere(out, ref) == pytest.approx(relative.mean(), rel=1e-9)
    assert median_rel(out, ref) == pytest.approx(np.sort(relative.flatten())[(r.size - 1) // 2], rel=1e-9)
    if np.any(o != r):
        assert sqnr_db(out, ref) == pytest.approx(10 * np.log10(np.sum(r**2) / np.sum((o - r) ** 2)), rel=1e-9)


def test_what_has_no_error():
    assert score(torch.empty(0, 3), torch.empty(0, 3)) == ErrorScore(0.0, math.inf, 0.0)
    assert score(torch.zeros(4), torch.zeros(4)) == ErrorScore(0.0, math.inf, 0.0)
    x = torch.tensor([1.0, math.nan, math.inf])
    assert score(x, x) == ErrorScore(0.0, math.inf, 0.0)


def test_an_error_on_zeros_is_infinite():
    assert score(torch.ones(4), torch.zeros(4)) == ErrorScore(math.inf, -math.inf, math.inf)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_side_not_finite_is_an_infinite_error(bad):
    good, spoilt = torch.ones(9), torch.ones(9)
    spoilt[3] = bad
    for found in (score(spoilt, good), score(good, spoilt)):
        assert found == ErrorScore(math.inf, -math.inf, 0.0)


@given(st.lists(st.floats(width=32), max_size=12), st.lists(st.floats(width=32), max_size=12))
def test_never_nan(out, ref):
    size = min(len(out), len(ref))
    found = score(torch.tensor(out[:size]), torch.tensor(ref[:size]))
    assert not any(math.isnan(v) for v in (found.mere, found.sqnr_db, found.median_rel))


def test_extreme_magnitudes_keep_their_ratio():
    for scale in (1e-300, 1e300):
        ref = torch.tensor([1.0, 2.0], dtype=torch.float64) * scale
        assert sqnr_db(ref * 1.01, ref) == pytest.approx(40, abs=1e-6)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2,\).*\(3,\)"):
        score(torch.ones(2), torch.ones(3))


def test_worst_takes_each_error():
    assert ErrorScore(1, 20, 3).worst(ErrorScore(2, 30, 1)) == ErrorScore(2, 20, 3)


def test_rows_of_very_different_size():
    """A shared scale wipes small rows out: MERE and the median see it, the signal-to-noise ratio does not."""
    scales = torch.exp(3 * normal(512, 1, seed=1))
    lhs, rhs = normal(512, 256) * scales, normal(256, 192, seed=2)
    ref = product(lhs, rhs)
    tensor, row = (score(emulate(RECIPES[name], lhs, rhs), ref) for name in ("fp8_tensorwise", "fp8_rowwise"))
    assert abs(tensor.sqnr_db - row.sqnr_db) < 2
    assert tensor.mere > 0.2 > 0.15 > row.mere  # on either side of the usual budget
    assert tensor.median_rel > 1.3 * row.median_rel


@pytest.mark.parametrize("name", [name for name in RECIPES if not RECIPES[name].unsigned])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_emulated_product_is_near(name, batch):
    lhs, rhs = normal(*batch, 33, 130), normal(*batch, 130, 140, seed=1)
    out = emulate(RECIPES[name], lhs, rhs)
    assert out.shape == (*batch, 33, 140)
    assert out.dtype == torch.float32
    assert score(out, product(lhs, rhs)).sqnr_db > 25


def test_gradients_take_their_own_format():
    lhs, rhs = normal(16, 32), normal(32, 16, seed=1)
    q, scale = quantize.reference(lhs, torch.float8_e5m2, "tensor", -1)
    p, other = quantize.reference(rhs, torch.float8_e4m3fn, "tensor", -2)
    expected = quantize.dequantize(q, scale) @ quantize.dequantize(p, other)
    assert torch.equal(emulate(RECIPES["fp8_tensorwise"], lhs, rhs, "lhs"), expected)


def test_fp16_overflow_is_an_infinite_error():
    lhs, rhs = torch.full((2, 4), 1e5), torch.ones(4, 2)
    assert score(emulate(RECIPES["fp16"], lhs, rhs), product(lhs, rhs)) == ErrorScore(math.inf, -math.inf, math.inf)


def test_the_result_has_the_model_s_precision():
    lhs, rhs = normal(8, 16).bfloat16(), normal(16, 8, seed=1).bfloat16()
    out = emulate(RECIPES["fp8_rowwise"], lhs, rhs)
    assert torch.equal(out, out.bfloat16().float())


@given(st.integers(1, 40), st.integers(1, 200), st.integers(1, 400), st.sampled_from(sorted(RECIPES)))
@settings(max_examples=60, deadline=None)
def test_a_part_scores_as_in_the_whole(m, k, n, name):
    lhs, rhs = normal(m, k) * torch.exp(normal(m, 1, seed=3)), normal(k, n, seed=1)
    lhs = torch.arange(m)[:, None] + lhs  # rows that can be told apart
    whole = emulate(RECIPES[name], lhs, rhs)
    a, b = subsample(lhs, rhs, 8, 128, torch.Generator().manual_seed(0))
    part = emulate(RECIPES[name], a, b, amax=(lhs.abs().max().item(), rhs.abs().max().item()))
    rows = [int((lhs == row).all(1).nonzero()[0]) for row in a]
    columns = [int((column == rhs.T).all(1).nonzero()[0]) for column in b.T]
    torch.testing.assert_close(part, whole[rows][:, columns], rtol=1e-4, atol=1e-4)


def test_subsample_is_bounded():
    generator = torch.Generator().manual_seed(0)
    a, b = subsample(normal(1000, 3), normal(3, 1000), 256, 256, generator)
    assert (a.shape, b.shape[0]) == ((256, 3), 3)
    assert b.shape[1] <= 256
    a, b = subsample(normal(100, 16, 8), normal(100, 8, 16), 64, 256, generator)
    assert (a.shape, b.shape) == ((4, 16, 8), (4, 8, 16))
    a, b = subsample(torch.ones(300, 2**17), torch.ones(2**17, 1).expand(-1, 300), 256, 256, generator)
    assert (a.shape, b.shape[0]) == ((8, 2**17), 2**17)
    assert b.shape[1] <= 128


def test_exact_undoes_autocast_and_inference_mode():
    lhs, rhs = normal(8, 8), normal(8, 8, seed=1)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        out = product(lhs, rhs)
    assert torch.equal(out, lhs @ rhs)
    assert not out.is_inference()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with exact():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
