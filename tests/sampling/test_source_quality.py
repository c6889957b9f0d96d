"""Calibration rows against production: those that agree are accepted, and weights mend the others."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loka_compile.sampling.intervals import Estimate, verdict
from loka_compile.sampling.source_quality import assess, rake, shares_of

PRODUCTION = {"country": {"US": 0.5, "DE": 0.3, "JP": 0.2}, "device": {"phone": 0.8, "web": 0.2}}


def rows_like(shares, n, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.choice(list(by), n, p=list(by.values())) for name, by in shares.items()}


def test_verdicts():
    assert verdict(Estimate(0.95, 0.92, 0.97), 0.9) == "accept"
    assert verdict(Estimate(0.91, 0.88, 0.93), 0.9) == "flag"
    assert verdict(Estimate(0.85, 0.82, 0.88), 0.9) == "refuse"


def test_rows_like_production_are_accepted_others_refused_few_flagged():
    many = assess(shares_of(rows_like(PRODUCTION, 5000)), PRODUCTION, rows=5000)
    assert many.verdict == "accept" and many.score.low > 0.9 and many.score.value == min(many.features.values())
    few = assess(shares_of(rows_like(PRODUCTION, 50)), PRODUCTION, rows=50)
    assert few.verdict == "flag"
    skewed = PRODUCTION | {"country": {"US": 0.9, "DE": 0.1}}
    other = assess(shares_of(rows_like(skewed, 5000)), PRODUCTION, rows=5000)
    assert other.verdict == "refuse"
    assert other.features["country"] == pytest.approx(0.6, abs=0.02)
    assert "'country' agrees least" in other.reason and "'US', 0.9" in other.reason and "0.500" in other.reason


def test_the_interval_of_an_assessment_covers_at_least_at_its_rate():
    source = PRODUCTION | {"country": {"US": 0.6, "DE": 0.25, "JP": 0.15}}  # agrees 0.9
    found = [assess(shares_of(rows_like(source, 200, seed)), PRODUCTION, rows=200) for seed in range(100)]
    assert sum(one.score.low <= 0.9 <= one.score.high for one in found) >= 95


@given(st.integers(2, 4), st.integers(2, 3), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_raking_hits_the_marginals(first, second, seed):
    rng = np.random.default_rng(seed)
    columns = {"a": rng.integers(0, first, 300), "b": rng.integers(0, second, 300)}
    wanted = {
        name: dict(enumerate(rng.dirichlet(np.full(size, 3.0)).tolist()))
        for name, size in (("a", first), ("b", second))
    }
    raked = rake(columns, wanted)
    assert raked.error < 1e-8 and raked.weights.mean() == pytest.approx(1)
    for name, by_value in shares_of(columns, raked.weights).items():
        assert by_value == pytest.approx(wanted[name])
    assert 1 <= raked.effective <= 300 + 1e-6
    assert np.array_equal(raked.weights, rake(columns, wanted).weights)
    cells = np.log(raked.weights)  # the nearest weights have no interaction: log w is additive
    table = np.array(
        [[cells[(columns["a"] == i) & (columns["b"] == j)][0] for j in range(second)] for i in range(first)]
    )
    assert np.allclose(table - table[:1], (table - table[:1])[:, :1], atol=1e-6)


def test_reweighting_repairs_a_source_and_pays_in_rows():
    columns = rows_like(PRODUCTION | {"country": {"US": 0.8, "DE": 0.15, "JP": 0.05}}, 5000)
    assert assess(shares_of(columns), PRODUCTION, rows=5000).verdict == "refuse"
    raked = rake(columns, PRODUCTION)
    assert 500 < raked.effective < 4000
    repaired = assess(shares_of(columns, raked.weights), PRODUCTION, rows=raked.effective)
    assert repaired.verdict == "accept" and repaired.score.value == pytest.approx(1)


def test_raking_starts_from_the_weights_of_a_sample():
    columns, start = {"a": [0, 0, 1, 1]}, [1, 3, 2, 2]
    raked = rake(columns, {"a": {0: 0.5, 1: 0.5}}, start)
    assert raked.weights.tolist() == pytest.approx([0.5, 1.5, 1, 1])
    assert raked.effective == pytest.approx(16 / 4.5)


def test_what_no_row_has_cannot_be_weighted_up():
    columns = {"a": ["x", "y", "y", "y"]}
    raked = rake(columns, {"a": {"x": 0.4, "y": 0.4, "z": 0.2}})
    assert shares_of(columns, raked.weights)["a"] == pytest.approx({"x": 0.5, "y": 0.5})
    assert raked.error == pytest.approx(0.2)
    left = rake(columns, {"a": {"x": 1.0}})
    assert left.weights.tolist() == [4, 0, 0, 0] and left.effective == pytest.approx(1)


def test_shares_no_weights_reach_together_show_as_an_error():
    columns = {"a": [0, 0, 1, 1], "b": [0, 0, 1, 1]}
    assert rake(columns, {"a": {0: 0.5, 1: 0.5}, "b": {0: 0.9, 1: 0.1}}).error > 0.1


def test_bad_shares_and_columns_are_errors():
    columns = {"a": [0, 1]}
    for call, message in (
        (lambda: assess({"a": {0: 0.5}}, {"a": {0: 1.0}}, rows=9), "source: the shares of 'a' .* sum to 0.5"),
        (lambda: assess({"a": {0: 1.0}}, {"a": {0: 1.5, 1: -0.5}}, rows=9), "production: .* negative"),
        (lambda: assess({"a": {0: 1.0}}, {"b": {0: 1.0}}, rows=9), r"no features \['b'\]; it has \['a'\]"),
        (lambda: assess({"a": {0: 1.0}}, {}, rows=9), "production has no features"),
        (lambda: assess({"a": {0: 1.0}}, {"a": {0: 1.0}}, rows=0), "at least 1 row"),
        (lambda: assess({"a": {0: 1.0}}, {"a": {0: 1.0}}, 90, rows=9), "threshold"),
        (lambda: rake(columns, {"b": {0: 1.0}}), r"no features \['b'\]"),
        (lambda: rake(columns, {"a": {7: 1.0}}), "no row has a value of 'a'"),
        (lambda: rake({"a": [0, 1], "b": [0, 1]}, {"a": {0: 1.0}, "b": {1: 1.0}}), "at once"),
        (lambda: shares_of({"a": [0, 1], "b": [0]}), r"columns must be \[N\]"),
        (lambda: shares_of({}), r"columns must be \[N\]"),
        (lambda: shares_of(columns, [1, -1]), r"weights must be \[2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
