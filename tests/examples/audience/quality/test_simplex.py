"""The convex problems underneath: optima meet their conditions, tables their margins."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from examples.audience.quality import simplex
from tests.examples.audience.quality.drawn import ERRORS, TRUTH, random_truth, simulate


@given(arrays(float, st.tuples(st.integers(1, 4), st.integers(1, 6)), elements=st.floats(-1e3, 1e3)))
def test_projection_meets_the_conditions_of_the_optimum(x):
    p = simplex.project(x)
    assert (p >= 0).all() and np.allclose(p.sum(1), 1)
    for point, found in zip(x, p, strict=True):  # KKT: one multiplier for all that is positive, no less for the rest
        shift = (point - found)[found > 0]
        assert np.ptp(shift) < 1e-9
        assert (point[found == 0] <= shift.min() + 1e-9).all()


@given(arrays(float, 3, elements=st.floats(-3, 3)))
@settings(max_examples=25)
def test_projection_is_nearest_by_brute_force(x):
    grid = np.array([(a, b, 50 - a - b) for a, b in itertools.product(range(51), repeat=2) if a + b <= 50]) / 50
    nearest = ((grid - x) ** 2).sum(1).min()
    found = ((simplex.project(x) - x) ** 2).sum()
    assert found <= nearest + 1e-9
    assert nearest <= (found**0.5 + 0.03) ** 2  # no grid point is far from the projection


@given(st.integers(2, 5), st.integers(0, 999), st.sampled_from([1e-6, 1e-2]))
@settings(max_examples=25, deadline=None)
def test_least_squares_is_where_a_projected_step_stays(tags, seed, ridge):
    rng = np.random.default_rng(seed)
    mixes, reports = rng.dirichlet(np.ones(tags), size=3 * tags), rng.dirichlet(np.ones(3), size=3 * tags)
    gram, cross = (mixes.T @ mixes + ridge * np.eye(tags))[None], (mixes.T @ reports)[None]
    q = simplex.least_squares(gram, cross, np.full(cross.shape, 1 / 3))
    assert np.abs(simplex.project(q - (gram @ q - cross)) - q).max() < 1e-6


def test_fitted_tables_have_both_margins():
    data, q = simulate(TRUTH, 5, 300, 0), random_truth(4, 1)
    rows, columns = simplex.fit_margins(data.mixes, data.reports, q, np.ones((5, 4)))
    tables = data.mixes[:, :, None] * q * rows[:, :, None] * columns[:, None, :]
    assert np.allclose(tables.sum(2), data.mixes, atol=1e-12)
    assert np.allclose(tables.sum(1), data.reports, atol=1e-6)


def test_the_likeliest_mix_is_the_one_that_gave_the_tags():
    mixes = np.array([[0.1, 0.6, 0.3], [1, 0, 0], [0.3, 0.3, 0.4]]) * 1000
    found = simplex.likeliest_mix(mixes @ ERRORS, np.broadcast_to(ERRORS.T, (3, 4, 3)))
    assert np.abs(found - mixes).max() < 2
    assert found.sum(1) == pytest.approx(1000)
