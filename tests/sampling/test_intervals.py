"""Percentile intervals of few draws hold as often as they say."""

import numpy as np
import pytest

from loka_compile.sampling.intervals import Bootstrap, interval


def test_the_ends_are_the_draws_of_that_number():
    draws = np.random.default_rng(0).permutation(np.arange(1, 40))
    low, high = interval(np.array([20, *draws]), Bootstrap(39))
    assert (low, high) == pytest.approx((1, 39))  # number 0.025 * 40 from either end
    assert interval(np.array([0, *draws]), Bootstrap(39))[0] == 0  # widened to hold the figure


@pytest.mark.parametrize("draws", [60, 200])
def test_another_draw_is_inside_as_often_as_they_say(draws):
    values = np.random.default_rng(0).normal(size=(1 + draws, 20_000))
    values[0], another = 0, np.random.default_rng(1).normal(size=20_000)
    low, high = interval(values, Bootstrap(draws))
    assert ((low <= another) & (another <= high)).mean() == pytest.approx(0.95, abs=0.006)
