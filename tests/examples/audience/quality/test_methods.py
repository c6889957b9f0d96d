"""Quality of a source from aggregates: the truth is recovered where it can be, and doubt admitted where it cannot."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.audience.quality.campaigns import Campaigns
from examples.audience.quality.methods import (
    constrained_regression,
    expectation_maximisation,
    marginal_agreement,
    single_tag,
)
from loka_compile.sampling.intervals import Bootstrap, verdict
from tests.examples.audience.quality.drawn import TRUTH, random_truth, simulate

FEW = Bootstrap(resamples=20)
ESTIMATORS = [constrained_regression, expectation_maximisation, single_tag]


@pytest.mark.parametrize("method", [constrained_regression, expectation_maximisation])
@given(st.integers(3, 5), st.integers(30, 80), st.integers(0, 999))
@settings(max_examples=15, deadline=None)
def test_a_known_q_is_recovered(method, tags, campaigns, seed):
    truth = random_truth(tags, seed)
    found = method(simulate(truth, campaigns, 20_000, seed), FEW)
    assert found.rank == tags and found.flags == ()
    assert np.allclose(found.q.sum(1), 1) and (found.q >= 0).all()
    assert np.abs(found.q - truth).max() < 0.06
    assert (found.low <= found.q).all() and (found.q <= found.high).all()


def test_without_noise_q_is_exact():
    counts = np.random.default_rng(0).integers(1, 1000, (12, 4))
    data = Campaigns.of(counts, counts / counts.sum(1, keepdims=True) @ TRUTH)
    assert np.abs(constrained_regression(data, FEW).q - TRUTH).max() < 1e-3  # what the ridge costs
    assert np.abs(expectation_maximisation(data, FEW, tolerance=1e-8).q - TRUTH).max() < 1e-4


def test_scores_are_those_of_the_truth():
    data = simulate(TRUTH, 60, 50_000, 3)
    share = data.sizes @ data.mixes / data.sizes.sum()
    base = share @ TRUTH
    accuracy = share[1:] @ np.diagonal(TRUTH[1:]) / (1 - share[0])
    joint = share[:, None] * TRUTH
    expected = {
        "accuracy": accuracy,
        "lift": accuracy / (share[1:] @ base / (1 - share[0])),
        "coverage": 1 - share[0],
        "bits": (joint * np.log2(joint / np.outer(share, base))).sum(),
    }
    for method in (constrained_regression, expectation_maximisation):
        found = method(data, FEW).scores
        assert {name: score.value for name, score in found.items()} == pytest.approx(expected, rel=0.02)


@given(st.integers(3, 5), st.integers(3, 30), st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_the_likelihood_never_falls(tags, campaigns, seed):
    found = expectation_maximisation(simulate(random_truth(tags, seed), campaigns, 500, seed), Bootstrap(1))
    trace = np.array(found.log_likelihood)
    assert len(trace) > 1 and trace.max() <= 1e-6
    assert np.diff(trace).min() >= -1e-6 * np.abs(trace).max()


def test_expectation_maximisation_forgets_where_it_started():
    data = simulate(TRUTH, 40, 5000, 0)
    ends = [expectation_maximisation(data, FEW, prior=random_truth(4, seed), tolerance=1e-8).q for seed in range(3)]
    assert np.ptp(ends, axis=0).max() < 1e-3


@pytest.mark.parametrize("method", [marginal_agreement, *ESTIMATORS])
@given(st.integers(1, 6), st.integers(0, 9999))
@settings(max_examples=15, deadline=None)
def test_few_tiny_campaigns_with_certain_tags_give_finite_figures(method, campaigns, seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 4, (campaigns, 4)) * rng.integers(0, 2, (campaigns, 4)) + [0, 1, 0, 0]
    truth = np.eye(3)[rng.integers(0, 3, 4)]
    with np.errstate(all="raise", under="ignore"):
        found = method(Campaigns.of(counts, counts / counts.sum(1, keepdims=True) @ truth), Bootstrap(5))
    for score in found.scores.values():
        assert np.isfinite(score.value) and score.low <= score.value <= score.high
    assert found.q is None or (np.allclose(found.q.sum(1), 1) and found.q.min() >= 0)


def test_the_methods_agree_on_rich_data():
    data = simulate(TRUTH, 150, 20_000, 5)
    regression, likelihood = constrained_regression(data, FEW), expectation_maximisation(data, FEW)
    assert np.abs(regression.q - likelihood.q).max() < 0.01


def test_the_likelihood_beats_the_regression_where_a_report_is_nearly_certain():
    """Campaigns of a sharp tag have exact reports: only the likelihood knows they count for more."""
    truth = np.array([[0.5, 0.5], [0.99, 0.01], [0.02, 0.98]])
    errors = {constrained_regression: 0.0, expectation_maximisation: 0.0}
    for seed, method in itertools.product(range(20), errors):
        errors[method] += ((method(simulate(truth, 12, 300, seed, 0.3), Bootstrap(1)).q - truth)[1:] ** 2).sum()
    assert errors[expectation_maximisation] < errors[constrained_regression]


def test_marginals_agree_where_errors_cancel():
    """Half of each tag is wrong, evenly: marginals cannot see it, the regression does."""
    truth = np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    counts = np.array([[0, 500 + x, 500 - x] for x in range(-60, 61, 10)])
    data = Campaigns.of(counts, counts / 1000 @ truth)
    agreement = marginal_agreement(data, FEW)
    assert agreement.scores["agreement"].value > 0.95 and "invisible" in agreement.flags[0]
    regression = constrained_regression(data, FEW)
    assert regression.scores["accuracy"].value == pytest.approx(0.5, abs=0.01)
    assert regression.scores["bits"].value < 1e-3


def test_marginal_agreement_counts_the_tagged_only():
    data = Campaigns.of([[50, 30, 20], [0, 100, 0]], [[0.6, 0.4], [0.5, 0.5]])
    scores = marginal_agreement(data, FEW).scores
    assert scores["agreement"].value == pytest.approx((50 * 1 + 100 * 0.5) / 150)
    assert scores["coverage"].value == pytest.approx(0.75)


def test_campaigns_of_one_mix_cannot_tell_tags_apart():
    counts = np.array([[100, 50, 50 + x] for x in range(0, 300, 20)])  # tags 0 and 1 always 2 to 1
    data = Campaigns.of(counts, counts / counts.sum(1, keepdims=True) @ np.array([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]]))
    for method in (constrained_regression, expectation_maximisation):
        found = method(data, FEW)
        assert found.rank == 2 and "rank 2 of 3 and cannot tell tags [0, 1] apart" in found.flags[0]
        assert (found.low[:2] == 0).all() and (found.high[:2] == 1).all() and (found.high[2] < 1).all()
        assert (found.scores["accuracy"].low, found.scores["accuracy"].high) == (0, 1)
        assert verdict(found.scores["accuracy"], 0.7) == "flag"
        assert found.scores["coverage"].high < 1
    with pytest.raises(ValueError, match="under-determined"):
        constrained_regression(data, FEW, ridge=0)


def test_a_tag_nobody_has_is_undetermined_alone():
    data = simulate(TRUTH, 30, 1000, 0)
    mixes = data.mixes.copy()
    mixes[:, 0] = 0
    found = constrained_regression(Campaigns.of(mixes, data.reports, data.sizes), FEW)
    assert "tags [0]" in found.flags[0] and found.scores["accuracy"].high < 1
    assert np.allclose(found.q[0], data.sizes @ data.reports / data.sizes.sum(), atol=1e-6)  # the prior


def test_single_tag_pools_dedicated_campaigns():
    counts = [[0, 100, 0], [0, 300, 0], [2, 0, 98], [50, 25, 25]]
    found = single_tag(Campaigns.of(counts, [[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.5, 0.5]]), FEW)
    assert found.q[1:].tolist() == pytest.approx(np.array([[0.75, 0.25], [0.2, 0.8]]))
    assert "tags [0]" in found.flags[0] and "one campaign alone decides a part of tags [2]" in found.flags[-1]
    assert (found.low[[0, 2]] == 0).all() and (found.high[[0, 2]] == 1).all() and found.scores["accuracy"].high == 1


def test_single_tag_agrees_with_the_regression_where_every_tag_has_campaigns():
    counts = np.repeat(np.eye(4) * 50_000, 5, axis=0)
    rng = np.random.default_rng(0)
    data = Campaigns.of(counts, [rng.multinomial(50_000, TRUTH[row.argmax()]) / 50_000 for row in counts])
    assert np.abs(single_tag(data, FEW).q - constrained_regression(data, FEW).q).max() < 1e-3


def test_a_q_that_differs_between_campaigns_is_flagged():
    parts = [simulate(q, 20, 5000, 0) for q in (TRUTH, TRUTH[[0, 2, 1, 3]])]
    data = Campaigns(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("mixes", "reports", "sizes")))
    assert constrained_regression(parts[0], FEW).scatter == pytest.approx(1, abs=0.5)
    assert any("Q differs between campaigns" in flag for flag in constrained_regression(data, FEW).flags)


def test_intervals_cover_the_truth_at_about_their_rate():
    share = np.full(4, 0.25)
    accuracy = share[1:] @ np.diagonal(TRUTH[1:]) / 0.75
    hits, cells, agreed, trials = 0, 0, 0, 100
    for seed in range(trials):
        found = constrained_regression(simulate(TRUTH, 40, 1000, seed), Bootstrap(150, 0.9, seed))
        hits += ((found.low <= TRUTH) & (found.high >= TRUTH)).sum()
        cells += TRUTH.size
        agreed += found.scores["accuracy"].low <= accuracy <= found.scores["accuracy"].high
    assert 0.87 <= hits / cells <= 0.93  # nominal: 0.9
    assert 0.84 <= agreed / trials <= 0.98


@pytest.mark.parametrize("method", [marginal_agreement, *ESTIMATORS])
def test_the_same_seed_gives_the_same_figures(method):
    data = simulate(TRUTH, 15, 1000, 0)
    one, same, other = (method(data, Bootstrap(20, seed=seed)) for seed in (1, 1, 2))
    assert one.scores == same.scores and one.flags == same.flags
    assert np.array_equal(one.low, same.low) if one.q is not None else True
    for name, score in other.scores.items():
        assert score.value == pytest.approx(one.scores[name].value, rel=1e-6)
    assert one.scores["coverage"] != other.scores["coverage"]


@pytest.mark.parametrize("method", ESTIMATORS)
def test_the_order_and_unit_of_campaigns_do_not_matter(method):
    data = simulate(TRUTH, 12, 1000, 0)
    turned = Campaigns.of(7 * data.mixes[::-1], data.reports[::-1], data.sizes[::-1])
    assert np.allclose(method(data, FEW).q, method(turned, FEW).q, atol=1e-5)


@pytest.mark.parametrize(
    ("counts", "reports", "sizes", "message"),
    [
        (np.ones((2, 3)), np.full((3, 2), 0.5), None, r"\[C, K \+ 1\].*\(2, 3\) and \(3, 2\)"),
        (np.ones((2, 2)), np.full((2, 2), 0.5), None, r"\[C, K \+ 1\]"),
        (np.ones((0, 3)), np.ones((0, 2)), None, "no campaigns"),
        ([[1, 2, -3]], [[0.5, 0.5]], None, r"counts\[0, 2\] is -3"),
        ([[1, 2, 3]], [[0.5, float("nan")]], None, r"reports\[0, 1\] is nan"),
        ([[1, 2, 3]], [[0.5, 0.4]], None, "campaign 0 sum to 0.9, not 1"),
        ([[1, 2, 3], [0, 0, 0]], [[0.5, 0.5]] * 2, None, "campaign 1 reached nobody"),
        ([[1, 2, 3]], [[0.5, 0.5]], [1, 2], r"sizes must be \[1\]"),
        ([[1, 2, 3]], [[0.5, 0.5]], [-1], r"sizes\[0\] is -1"),
        ([[9, 0, 0]], [[0.5, 0.5]], None, "no user has a tag"),
    ],
)
def test_bad_campaigns_are_errors(counts, reports, sizes, message):
    with pytest.raises(ValueError, match=message):
        Campaigns.of(counts, reports, sizes)


def test_bad_options_are_errors():
    data = Campaigns.of([[1, 2, 3], [3, 1, 2], [2, 3, 1]], [[0.5, 0.5]] * 3)
    for call, message in (
        (lambda: Bootstrap(0), "at least 1 resample"),
        (lambda: Bootstrap(level=1), "level between 0 and 1"),
        (lambda: constrained_regression(data, prior=[[1, 0]]), r"prior must be \[3, 2\]"),
        (lambda: expectation_maximisation(data, prior=[[0.5, 0.4]] * 3), "shares of 1"),
        (lambda: constrained_regression(data, ridge=-1), "must not be negative"),
        (lambda: single_tag(data, purity=0.3), "purity"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_rounded_reports_are_scaled_to_one():
    assert Campaigns.of([[1, 1, 1, 1]], [[0.33, 0.33, 0.33]]).reports.sum() == pytest.approx(1)
