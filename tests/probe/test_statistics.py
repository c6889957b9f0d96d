"""Running statistics: equal to those of the concatenation, and exact where they say so."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loka_compile.probe.distribution import capacity
from loka_compile.probe.statistics import QUANTILES, Moments, OperandStatistics

RANK_ERROR = 0.015
"""Of a t-digest of magnitudes, doubled."""


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def measure(*tensors, contraction=-1, samples=-2):
    statistics = OperandStatistics(contraction, samples, torch.Generator().manual_seed(0))
    for tensor in tensors:
        statistics.add(tensor)
    return statistics.result()


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(1, 6), st.floats(-5, 5), st.integers(-9, 9))
@settings(max_examples=60, deadline=None)
def test_batches_merge_to_the_whole(sizes, features, shift, exponent):
    batches = [normal(size, features, seed=i) * 2.0**exponent + shift + i for i, size in enumerate(sizes)]
    found, whole = measure(*batches), torch.cat(batches).double().numpy()
    assert (found.rows, found.values) == (whole.shape[0], whole.size)
    if whole.size == 0:
        return
    assert found.mean == pytest.approx(whole.mean(), rel=1e-6, abs=1e-6)
    assert found.std == pytest.approx(whole.std(), rel=1e-6, abs=1e-7)
    assert found.amax == np.abs(whole).max()
    for quantile, level in zip(found.quantiles, QUANTILES, strict=True):
        assert np.quantile(np.abs(whole), max(0, level - RANK_ERROR), method="lower") <= quantile * 1.000001 + 1e-30
        assert quantile <= np.quantile(np.abs(whole), min(1, level + RANK_ERROR), method="higher") * 1.000001
    assert found.least == whole.min()
    if whole.size > 1 and whole.std() > 1e-6:
        kurtosis = ((whole - whole.mean()) ** 4).mean() / whole.var() ** 2
        assert found.kurtosis == pytest.approx(kurtosis, rel=1e-4)


@given(st.lists(st.lists(st.floats(-100, 100), max_size=8), min_size=1, max_size=6))
def test_moments_merge_in_any_grouping(groups):
    def moments(values):
        return Moments.of(torch.tensor(values, dtype=torch.float64), len(values))

    left = Moments()
    for group in groups:
        left = left.merge(moments(group))
    right = Moments()
    for group in reversed(groups):
        right = moments(group).merge(right)
    assert left.n == right.n
    for name in ("mean", "m2", "m3", "m4"):
        assert getattr(left, name) == pytest.approx(getattr(right, name), rel=1e-6, abs=1e-3)


def test_a_large_operand_is_estimated_from_a_sample():
    x = normal(20_000, 64) * 3 + 1
    assert capacity(64) < 20_000
    found = measure(x)
    assert found.values == x.numel()
    assert found.amax == x.abs().max()
    assert found.mean == pytest.approx(1, abs=0.1)
    assert found.std == pytest.approx(3, rel=0.05)
    assert found.kurtosis == pytest.approx(3, rel=0.1)
    assert found.quantiles[0] == pytest.approx(x.abs().median().item(), rel=0.05)


def test_a_batch_weighs_by_its_size_not_by_its_sample():
    found = measure(torch.zeros(30_000, 64), torch.ones(10_000, 64))
    assert found.mean == pytest.approx(0.25)


@pytest.mark.parametrize("contraction", [-1, -2])
@pytest.mark.parametrize("samples", [-1, -2])
def test_zero_rows_are_slices_along_the_contraction(contraction, samples):
    x = normal(2, 5, 7).abs() + 1
    x[0, 2] = 0
    x[1, :, 3:5] = 0
    found = measure(x, contraction=contraction, samples=samples)
    assert (found.rows, found.zero_rows) == ((10, 1) if contraction == -1 else (14, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_what_is_not_finite_is_counted_and_left_out(dtype):
    x = torch.tensor([[1, math.nan, 3], [math.inf, -2, 0], [0, 0, 0], [4, 4, 4]], dtype=dtype)
    found = measure(x)
    assert (found.non_finite, found.zero_rows, found.amax) == (2, 1, 4)
    assert found.mean == pytest.approx(14 / 10)
    assert found.distribution.features == 3 and found.model in ("gaussian", "rows")


def test_nothing_finite():
    found = measure(torch.full((3, 3), math.nan))
    assert (found.non_finite, found.amax, found.mean, found.distribution) == (9, 0, 0, None)


def test_overflow_and_underflow():
    x = torch.tensor([[65504.0, 65505.0, -7e4, 1.0]])
    found = measure(x)
    assert found.fp16_overflows == 2
    assert found.amax == 7e4
    q = (x / (7e4 / 448)).to(torch.float8_e4m3fn).float()
    assert found.fp8_underflow == pytest.approx((q == 0).double().mean().item())
    assert measure(torch.tensor([[448.0, 2.0**-9, 2.0**-10, 2.0**-11, 0.0]])).fp8_underflow == pytest.approx(2 / 4)
    assert measure(torch.tensor([[8.0, 0.0, -0.25]])).dynamic_range == 5


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (0, 2, 3)])
def test_empty(shape):
    found = measure(torch.empty(shape))
    assert (found.values, found.amax, found.distribution) == (0, 0, None)


def test_views_are_measured_as_they_are_and_stay_unchanged():
    base = normal(9, 6)
    before = base.clone()
    mean = measure(base.T, samples=-1).distribution.mean
    torch.testing.assert_close(mean, base.mean(0))
    assert measure(base.T).amax == base.abs().max()
    assert torch.equal(base, before)
