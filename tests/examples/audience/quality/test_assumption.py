"""The campaigns decide what is the same in all of them: what a tag means, how the source errs, or neither."""

import numpy as np
import pytest

from examples.audience.quality.assumption import assumption
from examples.audience.quality.campaigns import Campaigns
from tests.examples.audience.quality.drawn import ERRORS, TRUTH, err, joined, simulate

SHARP = np.array([[0.4, 0.3, 0.3], [1, 0, 0], [0.02, 0.97, 0.01], [0.1, 0.2, 0.7]])


@pytest.mark.parametrize("truth", [TRUTH, SHARP])
def test_tags_that_mean_the_same_are_seen(truth):
    for campaigns in (10, 40):
        found = [assumption(simulate(truth, campaigns, 1000, seed)) for seed in range(8)]
        assert all(each.holds == "tags" and each.fits and each.told_apart for each in found)
        assert 0.7 < np.mean([each.tags for each in found]) < 1.4  # as far off as chance makes them


@pytest.mark.parametrize(("panel", "spread"), [(3000, 0.6), (500, 0.6), (500, 10)])
def test_a_source_that_errs_alike_is_seen(panel, spread):
    """Also where true mixes are alike, and known from a panel."""
    found = [assumption(err(ERRORS, 30, 3000, panel, seed, spread)) for seed in range(8)]
    assert all(each.holds == "errors" and each.fits and each.told_apart for each in found)
    assert 0.8 < np.mean([each.errors for each in found]) < 1.2


def test_campaigns_that_neither_explains_are_said_so():
    found = assumption(joined([simulate(TRUTH, 20, 5000, 0), simulate(TRUTH[[0, 2, 1, 3]], 20, 5000, 1)]))
    assert not found.fits and min(found.tags, found.errors) > 50 and "NEITHER" in str(found)


def test_campaigns_that_are_all_alike_tell_nothing():
    rng = np.random.default_rng(0)
    counts = rng.multinomial(1000, [0.25, 0.25, 0.25, 0.25], 20)
    reports = [sum(rng.multinomial(n, q) for n, q in zip(row, TRUTH, strict=True)) / 1000 for row in counts]
    found = assumption(Campaigns.of(counts, reports))
    assert found.fits and not found.told_apart and "do not tell" in str(found)


def test_one_campaign_shows_nothing():
    found = assumption(simulate(TRUTH, 1, 1000, 0))
    assert found.fits and not found.told_apart
