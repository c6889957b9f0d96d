"""Whole fronts while they fit, the last at random; budgets kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from examples.lattice.filter import choose
from examples.lattice.filter.fronts import fronts

SCORES = arrays(np.float64, st.tuples(st.integers(1, 20), st.integers(1, 3)), elements=st.integers(0, 4).map(float))


@given(SCORES, st.data(), st.integers(0, 99))
def test_whole_fronts_are_taken_while_they_fit(scores, data, seed):
    budget = data.draw(st.integers(1, len(scores)))
    taken = choose.pareto(scores, budget, np.random.default_rng(seed))
    rank = fronts(scores)
    assert len(set(taken.tolist())) == budget
    last = rank[taken].max()
    assert set(np.flatnonzero(rank < last).tolist()) <= set(taken.tolist())
    assert (np.diff(rank[taken]) >= 0).all()


def test_the_last_front_is_drawn_evenly():
    scores = np.array([[9.0, 9.0], [3, 0], [2, 1], [1, 2], [0, 3]])
    rng, counts = np.random.default_rng(0), np.zeros(5)
    for _ in range(2000):
        counts[choose.pareto(scores, 3, rng)] += 1
    assert counts[0] == 2000 and counts[1:] == pytest.approx([1000] * 4, rel=0.1)


def test_what_it_is_compared_with():
    scores = np.array([[9.0, 0.0], [5, 5], [0, 8], [1, 1]])
    assert choose.weighted_sum(scores, 2).tolist() == [1, 0]
    assert choose.weighted_sum(scores, 2, [0.1, 1]).tolist() == [2, 1]
    assert choose.single_task(scores, 2, 1).tolist() == [2, 1]
    assert sorted(choose.at_random(scores, 4, np.random.default_rng(0)).tolist()) == [0, 1, 2, 3]
    for budget in (0, 5):
        with pytest.raises(ValueError, match=f"between 1 and the number of features, 4; got {budget}"):
            choose.weighted_sum(scores, budget)


def test_a_task_that_nothing_serves_weighs_nothing():
    scores = np.array([[0.0, -0.2], [2.0, -0.1], [6.0, 0.0]])
    assert choose.scales(scores).tolist() == [1 / 8, 0]
    assert choose.weighted_sum(scores, 1, choose.scales(scores)).tolist() == [2]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_importances_and_weights_that_are_no_numbers_are_refused_by_every_way(bad):
    scores, rng = np.array([[9.0, 0.0], [5, 5], [0, 8]]), np.random.default_rng(0)
    wrong = scores.copy()
    wrong[1, 0] = bad
    for way in (
        lambda: choose.pareto(wrong, 2, rng),
        lambda: choose.weighted_sum(wrong, 2),
        lambda: choose.single_task(wrong, 2, 1),
        lambda: choose.at_random(wrong, 2, rng),
        lambda: choose.scales(wrong),
    ):
        with pytest.raises(ValueError, match="expected finite scores, got 1 that are nan or inf"):
            way()
    with pytest.raises(ValueError, match="expected a finite weight for each of 2 tasks, got"):
        choose.weighted_sum(scores, 2, np.array([1.0, bad]))
    with pytest.raises(ValueError, match="expected a finite weight for each of 2 tasks, got"):
        choose.weighted_sum(scores, 2, np.ones(3))
    for task in (-1, 2):
        with pytest.raises(ValueError, match=f"expected one of 2 tasks, counted from 0, got {task}"):
            choose.single_task(scores, 2, task)
