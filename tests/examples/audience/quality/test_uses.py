"""Users chosen at a price, users forecast."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from examples.audience.quality.campaigns import Campaigns
from examples.audience.quality.fitted import fitted
from examples.audience.quality.methods import constrained_regression, marginal_agreement
from examples.audience.quality.uses import chances_of, choose, forecast, trade_off
from loka_compile.sampling.intervals import Bootstrap
from tests.examples.audience.quality.drawn import TRUTH, err, guessing, joined, simulate

CHANCES = arrays(float, st.integers(1, 40), elements=st.sampled_from([0, 0.1, 0.25, 0.5, 0.9, 1]))


@given(CHANCES, st.floats(0, 2), st.floats(0.1, 5))
def test_no_other_choice_earns_more(chances, price, value):
    found = choose(chances, price, value)
    earned = value * found.right - found.cost
    order = np.sort(chances)[::-1]
    best = max(value * order[:n].sum() - price * n for n in range(len(order) + 1))
    assert earned == pytest.approx(best, abs=1e-9)
    assert found.users == found.chosen.sum() and found.cost == price * found.users


@given(CHANCES)
def test_the_surest_come_first(chances):
    curve = trade_off(chances, price=2.0)
    assert (np.diff(curve.precision) <= 1e-12).all() and curve.users[-1] == len(chances)
    assert curve.right[-1] == pytest.approx(chances.sum())
    bought = curve.right > 0
    assert curve.cost[bought] == pytest.approx(2 / curve.precision[bought])


def test_a_forecast_holds_the_truth():
    source = constrained_regression(simulate(TRUTH, 60, 5000, 0), Bootstrap(200))
    tags = np.repeat([0, 1, 2, 3], [4000, 3000, 2000, 1000])
    found = forecast(tags, source, category=1)
    expected = np.bincount(tags) @ TRUTH[:, 1]
    assert found.value == pytest.approx(expected, rel=0.05) and found.low <= expected <= found.high


def test_a_tag_the_campaigns_leave_open_counts_from_nobody_to_all():
    counts = np.array([[100, 50, 50 + x] for x in range(0, 300, 20)])  # tags 0 and 1 always 2 to 1
    data_q = np.array([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]])
    source = constrained_regression(Campaigns.of(counts, counts / counts.sum(1, keepdims=True) @ data_q))
    found = forecast([0] * 70 + [2] * 30, source, category=0)
    assert found.low <= 10 and found.high >= 70


def test_what_makes_no_sense_is_an_error():
    source = constrained_regression(simulate(TRUTH, 12, 500, 0), Bootstrap(5))
    for call, message in (
        (lambda: choose([0.5, 1.5], 1, 1), "between 0 and 1"),
        (lambda: choose([0.5], -1, 1), "a price is not negative"),
        (lambda: trade_off([], 1), "chances"),
        (lambda: choose([0.5], "1", 1), "got price='1'"),
        (lambda: choose([0.5], 1, float("nan")), "a value is positive"),
        (lambda: choose(["young"], 1, 1), "chances must be .* got"),
        (lambda: choose(source.chance(0), 1, 1), "got shape"),
        (lambda: source.chance("young"), "category must be 0 to 2, its place among the names; got 'young'"),
        (lambda: forecast(["young"], source, 0), "tags must be .* 0 for none"),
        (lambda: forecast([-1], source, 0), "tags must be"),
        (lambda: forecast([5], source, 0), "0 to 3; got 5"),
        (lambda: forecast([1], source, 3), "category must be 0 to 2"),
        (lambda: forecast([1], marginal_agreement(simulate(TRUTH, 12, 500, 0)), 0), "gives no Q"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_users_bought_are_as_often_right_as_said_where_the_source_errs_alike():
    """In an audience whose mix is not the campaigns': a third of these, a tenth of that one, is of the category."""
    rng, errors = np.random.default_rng(0), guessing(0.8)
    source = fitted(err(errors, 40, 4000, 1000, 0), Bootstrap(40))
    truth = rng.choice(3, 60_000, p=[0.1, 0.6, 0.3])
    tags = np.array([rng.choice(4, p=errors[c]) for c in truth])
    bought = choose(chances_of(tags, source, 0), price=1, value=4)
    right = (truth[bought.chosen] == 0).sum()
    assert 5000 < bought.users < 15_000 and bought.right == pytest.approx(right, rel=0.05)
    found = forecast(tags, source, 0)
    assert found.low - 200 <= (truth == 0).sum() <= found.high + 200 and found.high - found.low < 2000


def test_nobody_is_bought_for_a_chance_that_nothing_shows():
    data = joined([simulate(q, 20, 5000, seed) for seed, q in enumerate((TRUTH, TRUTH[[0, 2, 1, 3]]))])
    source = fitted(data, Bootstrap(40))
    tags = np.repeat([0, 1, 2, 3], 1000)
    assert choose(chances_of(tags, source, 0), price=1, value=4).users == 0  # the estimate says 45 %, it may be none
    assert choose(source.chance(0)[0][tags], price=1, value=4).users > 0
    found = forecast(tags, source, 0)
    assert found.high - found.low > 2000
