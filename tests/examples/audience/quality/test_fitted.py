"""The default says what the campaigns bear out, however they were made, and bounds where they bear out nothing."""

import numpy as np
import pytest

from examples.audience.quality.campaigns import Campaigns
from examples.audience.quality.fitted import fitted
from examples.audience.quality.methods import constrained_regression
from examples.audience.quality.ranking import ranking
from loka_compile.sampling.intervals import Bootstrap
from tests.examples.audience.quality.drawn import TRUTH, err, guessing, joined, simulate

FEW = Bootstrap(40)


def test_sources_that_err_alike_are_as_right_as_they_are():
    """A vendor that is right for 60 % was said to be right for 100 % (100 to 100 %), and was ranked first."""
    found = {"bolt": fitted(err(guessing(0.6, 0.1), 40, 4000, 1000, 1), FEW)}
    found["acme"] = fitted(err(guessing(0.8, 0.25), 40, 4000, 1000, 1), FEW)
    for name, right in (("bolt", 0.6), ("acme", 0.8)):
        score = found[name].scores["accuracy"]
        assert found[name].holds == "errors" and found[name].sure and found[name].flags == ()
        assert (
            score.value == pytest.approx(right, abs=0.02) and score.low <= right + 0.01 and score.high >= right - 0.01
        )
        assert score.high - score.low < 0.03
    assert [(place.source, place.rank.high) for place in ranking(found)] == [("acme", 1), ("bolt", 2)]
    wrong = constrained_regression(err(guessing(0.6, 0.1), 40, 4000, 1000, 1), FEW)
    assert wrong.scores["accuracy"].value > 0.95 and "scatter" in wrong.flags[0]  # the other assumption


def test_tags_that_mean_the_same_are_judged_by_that():
    data = simulate(TRUTH, 40, 5000, 0)
    found = fitted(data, FEW)
    assert found.holds == "tags" and found.sure and found.flags == () and found.errors is None
    assert np.array_equal(found.q, constrained_regression(data, FEW).q)


def test_where_neither_holds_only_bounds_are_given():
    turned = TRUTH[[0, 2, 1, 3]]
    data = joined([simulate(TRUTH, 20, 5000, 0), simulate(turned, 20, 5000, 1)])
    found = fitted(data, FEW)
    right = np.average(
        [(mix[1:] * np.diag(q[1:])).sum() for mix, q in zip(data.mixes, [TRUTH] * 20 + [turned] * 20, strict=True)]
    ) / (1 - data.mixes[:, 0].mean())
    score = found.scores["accuracy"]
    assert not found.sure and "NEITHER" in found.flags[0]
    assert score.low <= right <= score.high and score.high - score.low > 0.3
    joint = sum(data.mixes[half].sum(0)[:, None] * q for half, q in ((slice(20), TRUTH), (slice(20, 40), turned)))
    q = joint / joint.sum(1, keepdims=True)
    assert (found.low <= q + 0.01).all() and (q - 0.01 <= found.high).all()
    assert np.ptp(found.chance(0), axis=0).min() > 0.3  # so that whoever uses it knows


@pytest.mark.parametrize("seed", range(4))
def test_bounds_hold_whatever_a_source_does(seed):
    """Each campaign has errors of its own, without any order."""
    rng = np.random.default_rng(seed)
    joint = rng.dirichlet(np.full(12, 0.3), 30).reshape(30, 4, 3)
    found = fitted(Campaigns.of(1000 * joint.sum(2), joint.sum(1)), FEW)
    together = joint.sum(0)
    q, right = together / together.sum(1, keepdims=True), np.trace(together[1:]) / together[1:].sum()
    assert not found.sure and found.scores["accuracy"].low <= right <= found.scores["accuracy"].high
    assert (found.low <= q).all() and (q <= found.high).all()


def test_what_the_campaigns_cannot_tell_apart_is_flagged():
    rng = np.random.default_rng(0)
    counts = rng.multinomial(1000, [0.25, 0.25, 0.25, 0.25], 20)
    reports = [sum(rng.multinomial(n, q) for n, q in zip(row, TRUTH, strict=True)) / 1000 for row in counts]
    assert "do not tell" in fitted(Campaigns.of(counts, reports), FEW).flags[0]
