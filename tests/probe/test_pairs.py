"""Errors on drawn pairs: intervals that hold, and an early end that changes no decision."""

import math

import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st

from loka_compile.probe.pairs import Estimated, Interval, estimate, interval, looks
from loka_compile.probe.statistics import OperandStatistics, OperandStats
from loka_compile.spec.error_budget import DEFAULT, ErrorBudget
from loka_compile.spec.recipes import RECIPES
from loka_compile.spec.site import Site

SIZES = (1, 500, 48, 40)


def site(role="output", dtype=torch.float32):
    numbers = map(sympy.Integer, SIZES)
    return Site("x#0:output", "mm", role, *numbers, dtype)


def stats(rows, kind="activation"):
    statistics = OperandStatistics(-1, -2, torch.Generator().manual_seed(0), kind)
    statistics.add(rows)
    return statistics.result()


def operands(scale=1.0):
    source = torch.Generator().manual_seed(0)
    x = torch.randn(500, 40, generator=source)
    x[0, 0] *= scale
    return stats(x), stats(torch.randn(48, 40, generator=source), "weight")


def run(recipes, pairs=100, seed=0, budget=DEFAULT, where=None, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    chosen = [RECIPES[name] for name in recipes]
    return estimate(where or site(), *operands(scale), chosen, SIZES, generator, pairs, budget)


def test_all_recipes_have_intervals_around_sensible_errors():
    found = run(RECIPES)
    assert set(found) == set(RECIPES)
    for name in ("bf16", "fp16", "int8_rowwise", "fp8_rowwise"):
        mere, sqnr = found[name].mere, found[name].sqnr_db
        assert 0 < mere.low <= mere.high < 0.2 and 20 < sqnr.low <= sqnr.high
        cautious = found[name].cautious
        assert (cautious.mere, cautious.sqnr_db) == (mere.high, sqnr.low)
    assert found["fp16"].mere.high < found["bf16"].mere.low < found["fp8_rowwise"].mere.low


def test_clear_recipes_end_early_and_close_ones_do_not():
    found = run(["bf16", "uint8_rowwise"])  # far within, far beyond
    assert {each.pairs for each in found.values()} == {25}
    close = run(["fp8_rowwise"])["fp8_rowwise"]
    middle = (close.mere.low + close.mere.high) / 2
    assert run(["fp8_rowwise"], budget=ErrorBudget(middle))["fp8_rowwise"].pairs == 100


@pytest.mark.parametrize("seed", range(5))
def test_an_early_end_changes_no_decision(seed):
    early, full = run(RECIPES, seed=seed), run(RECIPES, seed=seed, budget=ErrorBudget(-1.0, math.inf))
    for name in RECIPES:
        within = [e[name].cautious.mere <= 0.2 and e[name].cautious.sqnr_db >= 20 for e in (early, full)]
        assert within[0] == within[1], name


def test_intervals_cover_what_more_pairs_find():
    """95 % of them; of 40, all but a few."""
    truth = run(["fp8_rowwise"], pairs=1000, seed=99, budget=ErrorBudget(-1.0, math.inf))["fp8_rowwise"]
    middle = (truth.mere.low + truth.mere.high) / 2
    found = [run(["fp8_rowwise"], pairs=25, seed=seed)["fp8_rowwise"].mere for seed in range(40)]
    assert sum(each.low <= middle <= each.high for each in found) >= 35


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_an_interval_contains_the_mean(values):
    found = interval(values)
    mean = sum(values) / len(values)
    assert found.low - 1e-6 * abs(mean) - 1e-6 <= mean <= found.high + 1e-6 * abs(mean) + 1e-6


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([math.inf], Interval(math.inf, math.inf)),
        ([1.0, math.inf], Interval(1.0, math.inf)),
        ([-math.inf, 30.0], Interval(-math.inf, 30.0)),
        ([2.0], Interval(2.0, 2.0)),
    ],
)
def test_what_is_not_finite_is_not_averaged_away(values, expected):
    assert interval(values) == expected


def test_clearing():
    within = Estimated(25, Interval(0.1, 0.15), Interval(25, 26), Interval(0, 0))
    beyond = Estimated(25, Interval(0.3, 0.4), Interval(25, 26), Interval(0, 0))
    unclear = Estimated(25, Interval(0.1, 0.3), Interval(25, 26), Interval(0, 0))
    assert [each.clears(DEFAULT) for each in (within, beyond, unclear)] == [True, True, False]


def test_looks():
    assert (looks(100), looks(1), looks(0)) == ([25, 50, 100], [1], [])


def test_what_cannot_be_drawn_has_no_errors():
    lhs, rhs = operands()
    args = [RECIPES["bf16"]], SIZES, torch.Generator()
    assert estimate(site(), OperandStats(), rhs, *args) == {}
    assert estimate(site(), lhs, stats(torch.randn(9, 7)), *args) == {}
    assert estimate(site(), lhs, rhs, [], SIZES, torch.Generator()) == {}


def test_a_gradient_of_a_weight_is_summed_over_the_batch():
    source = torch.Generator().manual_seed(0)
    lhs = stats(torch.randn(500, 32, generator=source))
    rhs = stats(torch.randn(500, 48, generator=source) * 1e-3, "gradient")
    found = estimate(site("grad_weight"), lhs, rhs, [RECIPES["bf16"]], (1, 32, 48, 500), source)
    assert 0 < found["bf16"].mere.high < 0.1


def test_a_rare_outlier_still_sets_the_scale():
    """Whatever is drawn, a tensor-wide scale has room for the largest magnitude seen."""
    calm, wild = run(["fp8_tensorwise"])["fp8_tensorwise"], run(["fp8_tensorwise"], scale=1e6)["fp8_tensorwise"]
    assert wild.mere.low > calm.mere.high
