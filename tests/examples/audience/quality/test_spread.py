"""Intervals of Q hold the truth as often as they say, however few the campaigns; what cannot be known is left open."""

import numpy as np
import pytest

from examples.audience.quality.campaigns import Campaigns, resampled
from examples.audience.quality.methods import constrained_regression, expectation_maximisation, holdout, single_tag
from loka_compile.sampling.intervals import Bootstrap
from tests.examples.audience.quality.drawn import TRUTH, simulate

BORDER = np.array([[0.4, 0.3, 0.3], [1, 0, 0], [0.02, 0.97, 0.01], [0.1, 0.2, 0.7]])


def held(method, campaigns, seeds, truth=TRUTH, spread=0.3, drawn=simulate):
    """How often the 95 % interval of an entry of Q holds it, [tags, categories]."""
    hits = []
    for seed in range(seeds):
        found = method(drawn(truth, campaigns, 1000, seed, spread), Bootstrap(199, seed=seed))
        assert (found.low >= 0).all() and (found.high <= 1).all()
        assert (found.low <= found.q).all() and (found.q <= found.high).all()
        hits.append((found.low <= truth) & (found.high >= truth))
    return np.mean(hits, axis=0)


@pytest.mark.parametrize(
    ("method", "campaigns", "seeds"),
    [
        (constrained_regression, 6, 150),
        (constrained_regression, 10, 150),
        (constrained_regression, 40, 60),
        (expectation_maximisation, 10, 100),
    ],
)
def test_intervals_hold_what_they_say(method, campaigns, seeds):
    assert 0.93 <= held(method, campaigns, seeds).mean() <= 0.97


def test_they_hold_where_tags_are_certain():
    by_entry = held(constrained_regression, 10, 150, BORDER)
    assert 0.94 <= by_entry.mean() <= 0.98 and by_entry[1].min() >= 0.93  # [1, 0, 0]: no side of it can be missed


def test_they_hold_where_each_campaign_has_a_q_of_its_own():
    """Nothing in the interval's width takes users for drawn from one Q: its scale is that of the errors seen."""

    def differing(truth, campaigns, size, seed, spread):
        rng = np.random.default_rng(seed)
        mixes = rng.dirichlet(np.full(4, spread), campaigns)
        own = np.array([[rng.dirichlet(30 * row) for row in truth] for _ in range(campaigns)])
        return Campaigns.of(size * mixes, np.einsum("ka,kac->kc", mixes, own))

    assert 0.92 <= held(constrained_regression, 12, 150, drawn=differing).mean() <= 0.98


def test_single_tags_admit_whom_else_their_campaigns_hold():
    """Up to 5 % of a campaign's users have other tags, which moves its report by more than chance does."""

    def impure(truth, campaigns, size, seed, spread):
        rng = np.random.default_rng(seed)
        tags = np.arange(campaigns) % 4
        mixes = np.eye(4)[tags] * 0.95 + np.eye(4)[(tags + 1) % 4] * 0.05
        return Campaigns.of(size * mixes, [rng.multinomial(size, mix @ truth) / size for mix in mixes])

    assert held(single_tag, 24, 60, drawn=impure).min() >= 0.93


def test_a_holdout_holds_what_it_says_where_cells_are_empty():
    hits = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        tags = np.arange(120) % 4
        found = holdout(tags, [rng.choice(3, p=BORDER[tag]) for tag in tags], 3, Bootstrap(199, seed=seed))
        hits.append((found.low <= BORDER) & (found.high >= BORDER))
    assert 0.93 <= np.mean(hits) <= 0.98 and np.mean(hits, axis=0).min() >= 0.9


def test_scores_hold_what_they_say():
    shares, hits = np.full(4, 0.25), []
    right = shares[1:] @ np.diagonal(TRUTH[1:]) / 0.75
    for seed in range(150):
        scores = constrained_regression(simulate(TRUTH, 12, 1000, seed), Bootstrap(199, seed=seed)).scores
        for name, true in (("accuracy", right), ("coverage", 0.75)):
            hits.append(scores[name].low <= true <= scores[name].high)
    assert 0.92 <= np.mean(hits) <= 0.99


def test_as_many_campaigns_as_tags_show_no_error():
    """They fit exactly, whatever chance did."""
    data = simulate(TRUTH, 4, 1000, 1)
    found = constrained_regression(data, Bootstrap(20))
    assert (found.low == 0).all() and (found.high == 1).all()
    assert "one campaign alone decides a part of tags [0, 1, 2, 3]" in found.flags[-1]


def test_a_campaign_that_alone_shows_a_tag_leaves_only_that_tag_open():
    rng = np.random.default_rng(0)
    mixes = np.vstack([np.hstack([rng.dirichlet(np.ones(3), 20), np.zeros((20, 1))]), [[0.1, 0.1, 0.1, 0.7]]])
    data = Campaigns.of(1000 * mixes, [rng.multinomial(1000, mix @ TRUTH) / 1000 for mix in mixes])
    for method in (constrained_regression, expectation_maximisation):
        found = method(data, Bootstrap(20))
        assert (found.low[3] == 0).all() and (found.high[3] == 1).all() and (found.high - found.low)[:3].max() < 0.3
        assert "tags [3]" in found.flags[-1]


@pytest.mark.parametrize("campaigns", [2, 10, 100])
def test_drawn_campaigns_spread_a_mean_as_student_says(campaigns):
    """That of n equal campaigns has variance s^2 / n, where the sum of squares is divided by n - 1."""
    weights = resampled(np.ones(campaigns), Bootstrap(20_000))[1:]
    values = np.random.default_rng(0).normal(size=campaigns)
    quantile = {2: 12.706, 10: 2.262, 100: 1.984}[campaigns]
    error = quantile / 1.96 * values.std(ddof=1) / campaigns**0.5
    if campaigns == 2:  # two are drawn one by one: half their distance is as far as they go
        assert np.ptp(weights @ values) == pytest.approx(np.ptp(values))
    else:
        assert error * 0.98 <= (weights @ values).std() <= error * 1.08  # 6 campaigns, not 6.76, are drawn of 10
