"""What a stratified sample says of all rows: a value, and an interval that holds the truth as often as it claims."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from loka_compile.sampling.stratified import Sample, estimate, stratified_sample
from tests.sampling.population import population


def simple_sample(n=50, rows=500):
    """A uniform sample as a Sample of one stratum."""
    picked = torch.arange(n)
    return Sample(picked, torch.full((n,), rows / n, dtype=torch.float64), torch.zeros_like(picked), (), rows)


def test_of_one_stratum_the_textbook_interval():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0)).double()
    found = estimate(simple_sample(), values)
    spread = 2.0096 * math.sqrt((1 - 50 / 500) * values.var().item() / 50)  # Student's t with 49 degrees of freedom
    assert found.value == pytest.approx(values.mean().item())
    assert {type(number) for number in (found.value, found.low, found.high)} == {float}
    assert (found.low, found.high) == pytest.approx((found.value - spread, found.value + spread), rel=1e-4)
    total = estimate(simple_sample(), values, of="total")
    assert (total.value, total.low, total.high) == pytest.approx((500 * found.value, 500 * found.low, 500 * found.high))


def test_nothing_that_matches_is_bounded_by_the_rule_of_three():
    none = torch.zeros(50, dtype=torch.bool)
    found = estimate(simple_sample(), 1.0, none, of="total")
    assert (found.value, found.low, found.high, found.rows) == (0, 0, 30, 0)
    assert estimate(simple_sample(), -2.0, none, of="total").low == -60
    unknown = estimate(simple_sample(), 1.0, none)
    assert math.isnan(unknown.value) and (unknown.low, unknown.high) == (-math.inf, math.inf)


def test_the_mean_of_one_row_has_no_known_error():
    one = torch.arange(50) == 7
    found = estimate(simple_sample(), torch.arange(50.0), one)
    assert (found.value, found.low, found.high, found.rows) == (7, -math.inf, math.inf, 1)


def test_values_of_the_wrong_length_are_refused():
    with pytest.raises(ValueError, match=r"`values` has shape \(500,\); expected a value for each of the 50"):
        estimate(simple_sample(), torch.zeros(500))
    with pytest.raises(TypeError, match="`where` must be bool"):
        estimate(simple_sample(), 1.0, torch.ones(50))
    with pytest.raises(ValueError, match="'mean' or 'total', not 'sum'"):
        estimate(simple_sample(), 1.0, of="sum")  # type: ignore[arg-type]


@pytest.mark.parametrize("least", [0, 15])
def test_intervals_hold_the_truth_about_as_often_as_they_claim(least):
    """95 %; paired strata make them somewhat wide, skewed values somewhat narrow."""
    features, values = population()
    matching = {"all": np.ones(6000, bool), "rare": features["country"] >= 5, "noise": features["noise"] == 2}
    held: dict[tuple[str, str], list[bool]] = {}
    for seed in range(200):
        sample = stratified_sample(
            features, 400, seed=seed, segments=["country"] if least else [], min_per_segment=least
        )
        rows = sample.rows.numpy()
        for name, where in matching.items():
            for of, truth in (("mean", values[where].mean()), ("total", values[where].sum())):
                found = estimate(sample, values[rows], where[rows], of=of)
                held.setdefault((name, of), []).append(found.low <= truth <= found.high)
    shares = {key: float(np.mean(hits)) for key, hits in held.items()}
    print(f"\nintervals that hold the truth, min_per_segment={least}: {shares}")
    assert min(shares.values()) >= 0.9
    assert np.mean(list(shares.values())) >= 0.93
