"""The roofline: numbers and expressions in the batch's symbol agree, and the bound is what takes the time."""

from __future__ import annotations

import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st

from loka_compile.spec.roofline import Rates, rates_of
from loka_compile.spec.target import TARGETS

SIZE = st.floats(0, 1e15)


@given(flops=SIZE, nbytes=SIZE, launch=st.floats(0, 1e-3), kernels=st.integers(1, 9))
def test_the_larger_of_both_and_every_launch(flops, nbytes, launch, kernels):
    rates = Rates(1e12, 1e11, launch)
    assert rates.seconds(flops, nbytes, kernels) == max(flops / 1e12, nbytes / 1e11) + kernels * launch
    assert rates.bound(flops, nbytes) in ("compute", "memory", "launch")


def test_what_bounds_a_kernel():
    rates = Rates(1e12, 1e11, 1e-6)
    assert [rates.bound(*work) for work in ((1e9, 1e3), (1e3, 1e9), (1e3, 1e3))] == ["compute", "memory", "launch"]


def test_an_expression_in_the_batch_is_the_number_at_each_batch():
    batch = sympy.Symbol("b", positive=True, integer=True)
    rates = rates_of(TARGETS["h100"], torch.bfloat16)
    seconds = rates.seconds(2 * batch * 512 * 512, batch * 2048 + 524288)
    for rows in (1, 4096, 65536):
        at = rates.seconds(2 * rows * 512 * 512, rows * 2048 + 524288)
        assert float(seconds.subs(batch, rows)) == pytest.approx(at)


def test_a_dtype_without_a_peak_has_no_rates():
    with pytest.raises(KeyError):
        rates_of(TARGETS["h100"], torch.complex64)
