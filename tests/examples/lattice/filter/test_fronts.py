"""Fronts equal a brute force, in both libraries, with and without tolerance."""

from __future__ import annotations

import importlib.util
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from examples.lattice.filter import fronts as module
from examples.lattice.filter.fronts import fronts

SHAPES = st.tuples(st.integers(1, 25), st.integers(1, 5))
FEW = arrays(np.float64, SHAPES, elements=st.integers(-3, 3).map(float))  # many ties and equal features
MANY = arrays(np.float64, SHAPES, elements=st.floats(-1e6, 1e6, allow_subnormal=False))


def brute(scores):
    """Front by front, as the definition says."""
    left, rank, found = set(range(len(scores))), 0, np.zeros(len(scores), dtype=int)
    while left:
        front = [
            i for i in left if not any((scores[k] >= scores[i]).all() and (scores[k] > scores[i]).any() for k in left)
        ]
        found[front] = rank
        left -= set(front)
        rank += 1
    return found


@pytest.mark.parametrize("library", ["numpy", "moocore", "auto"])
@given(scores=st.one_of(FEW, MANY))
def test_fronts_are_those_of_the_definition(library, scores):
    if library == "moocore":
        pytest.importorskip("moocore")
    assert fronts(scores, library=library).tolist() == brute(scores).tolist()


@given(FEW, st.lists(st.sampled_from([0.0, 0.7, 2.0]), min_size=5, max_size=5))
def test_tolerance_rounds_to_sigma(scores, sigma):
    sigma = np.array(sigma[: scores.shape[1]])
    rounded = np.stack([np.round(c / s) if s else c for c, s in zip(scores.T, sigma, strict=True)], axis=1)
    assert fronts(scores, sigma).tolist() == brute(rounded).tolist()


def test_blocks_do_not_matter(monkeypatch):
    scores = np.random.default_rng(0).normal(size=(300, 3)).round(1)
    whole = fronts(scores, library="numpy")
    monkeypatch.setattr(module, "BLOCK", 7)
    assert fronts(scores, library="numpy").tolist() == whole.tolist() == brute(scores).tolist()


def test_noise_hides_dominance_and_sigma_finds_it():
    rng = np.random.default_rng(0)
    truth = np.repeat([[3.0], [2.0], [1.0]], 50, axis=0) * np.ones(2)
    noisy = truth + rng.normal(scale=0.1, size=truth.shape)
    strict, tolerant = fronts(noisy), fronts(noisy, 1.0)
    assert len(set(strict[:50].tolist())) > 1  # chance orders what is equal
    assert [set(tolerant[i : i + 50].tolist()) for i in (0, 50, 100)] == [{0}, {1}, {2}]


def test_the_plain_tolerance_has_circles():
    """k before i if f_k >= f_i - sigma for all tasks and f_k > f_i + sigma for one: three that beat one another."""
    a, b, c = np.array([0.0, 0, 0]), np.array([1.5, -1, -0.8]), np.array([0.5, 0.5, -1.8])

    def beats(k, i, sigma=1.0):
        return bool((k >= i - sigma).all() and (k > i + sigma).any())

    assert beats(b, a) and beats(c, b) and beats(a, c)


def test_what_cannot_be_sorted_is_refused():
    with pytest.raises(ValueError, match="finite scores"):
        fronts(np.array([[np.nan, 1.0]]))
    with pytest.raises(ValueError, match=r"got shape \(3,\)"):
        fronts(np.zeros(3))
    with pytest.raises(ValueError, match="not negative"):
        fronts(np.zeros((2, 2)), np.array([1.0, -1.0]))
    assert fronts(np.zeros((0, 4))).tolist() == []


def test_a_noise_that_is_no_number_is_refused_and_one_without_end_hides_all():
    scores = np.array([[3.0, 0.0], [1.0, 5.0], [2.0, 2.0]])
    for sigma in (np.nan, np.array([np.nan, 1.0])):
        with pytest.raises(ValueError, match="sigma is a number and not negative"):
            fronts(scores, sigma)
    assert fronts(scores, np.array([np.inf, 0.0])).tolist() == [2, 0, 1]


def test_twelve_thousand_features_by_twenty_tasks_in_a_minute():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(12_000, 1))
    for scores in (rng.normal(size=(12_000, 20)), 3 * shared + rng.normal(size=(12_000, 20))):
        start = time.process_time()
        rank = fronts(scores, library="numpy")
        assert time.process_time() - start < 60
        if importlib.util.find_spec("moocore"):
            assert rank.tolist() == fronts(scores, library="moocore").tolist()
    assert rank.max() > 5  # importances that agree give many fronts
