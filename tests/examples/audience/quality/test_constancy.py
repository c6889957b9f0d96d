"""One Q in all verticals, or not: the test finds a difference, and calls none at its rate."""

import numpy as np
import pytest

from examples.audience.quality.constancy import constancy
from tests.examples.audience.quality.drawn import TRUTH, joined, simulate

TURNED = TRUTH[[0, 2, 1, 3]]


def test_a_q_that_differs_by_vertical_is_found():
    data = joined([simulate(TRUTH, 20, 5000, 0), simulate(TURNED, 20, 5000, 1)])
    found = constancy(data, ["news"] * 20 + ["sport"] * 20, permutations=60)
    assert found.p < 0.05 and not found.holds and found.spread > 0.4
    assert np.abs(found.q["news"] - TRUTH).max() < 0.05 and np.abs(found.q["sport"] - TURNED).max() < 0.05


def test_one_q_is_doubted_at_about_the_rate_of_chance():
    verticals = ["news", "sport"] * 12
    doubted = [not constancy(simulate(TRUTH, 24, 1000, s), verticals, permutations=39).holds for s in range(60)]
    assert sum(doubted) <= 8  # nominal: 3; more than 8 has a chance of 1 %


def test_verticals_that_cannot_be_compared_are_errors():
    data = simulate(TRUTH, 4, 100, 0)
    for verticals in (["news"] * 4, ["news"] * 3 + ["sport"]):
        with pytest.raises(ValueError, match="two verticals of two campaigns"):
            constancy(data, verticals)
    with pytest.raises(ValueError, match="4 campaigns have 3 verticals"):
        constancy(data, ["news"] * 3)
