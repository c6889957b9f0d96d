"""Q by how a source errs: recovered, with intervals that hold, however few were asked for the truth."""

import numpy as np
import pytest

from examples.audience.quality.campaigns import Campaigns
from examples.audience.quality.errors import error_regression
from examples.audience.quality.methods import expectation_maximisation
from examples.audience.quality.result import bayes
from loka_compile.sampling.intervals import Bootstrap
from tests.examples.audience.quality.drawn import ERRORS, err


def test_without_noise_it_is_exact():
    rng = np.random.default_rng(0)
    true = rng.dirichlet(np.ones(3), 12)
    found = error_regression(Campaigns.of(1e6 * true @ ERRORS, true), Bootstrap(5))
    assert np.abs(found.errors.T - ERRORS).max() < 1e-3
    assert np.abs(found.q - bayes(ERRORS.T, true.mean(0))).max() < 1e-3


@pytest.mark.parametrize(("campaigns", "panel", "spread", "seeds"), [(8, 1000, 0.6, 60), (30, 300, 8.0, 40)])
def test_intervals_hold_what_they_say(campaigns, panel, spread, seeds):
    hits, right = [], []
    for seed in range(seeds):
        data = err(ERRORS, campaigns, 3000, panel, seed, spread)
        rng = np.random.default_rng(seed)  # as `err` has it
        true = np.array([rng.multinomial(3000, rng.dirichlet(np.full(3, spread))) for _ in range(campaigns)]).sum(0)
        q = bayes(ERRORS.T, true)
        found = error_regression(data, Bootstrap(199, seed=seed))
        hits.append((found.low <= q) & (q <= found.high))
        share = true / true.sum()
        accuracy = (share * np.diag(ERRORS[:, 1:])).sum() / (share @ ERRORS)[1:].sum()
        right.append(found.scores["accuracy"].low <= accuracy <= found.scores["accuracy"].high)
    assert 0.93 <= np.mean(hits) <= 0.99 and np.mean(right) >= 0.92


def test_a_small_panel_does_not_flatten_it():
    """True mixes that differ little, from 100 users: half of how reports vary is chance."""
    found = np.mean(
        [error_regression(err(ERRORS, 60, 3000, 100, seed, 8.0), Bootstrap(1)).errors for seed in range(12)], 0
    )
    assert np.abs(found.T - ERRORS).max() < 0.04


def test_categories_that_no_campaign_tells_apart_leave_everything_open():
    true = np.array([[0.2, 0.4, 0.4], [0.4, 0.3, 0.3], [0.6, 0.2, 0.2], [0.8, 0.1, 0.1], [0.1, 0.45, 0.45]])
    found = error_regression(Campaigns.of(1e4 * true @ ERRORS, true), Bootstrap(20))
    assert "rank 2 of 3" in found.flags[0] and (found.low == 0).all() and (found.high == 1).all()
    assert (found.scores["accuracy"].low, found.scores["accuracy"].high) == (0, 1)


def test_expectation_maximisation_is_right_about_all_campaigns_together():
    data = err(ERRORS, 60, 5000, 5000, 0)
    assert np.abs(expectation_maximisation(data, Bootstrap(1)).q - error_regression(data, Bootstrap(1)).q).max() < 0.03
