"""Several sources: Bayes by brute force over all tags, and what copies do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.audience.quality.combine import combined, raked
from tests.examples.audience.quality.drawn import TRUTH


def noisy_source(base, right, coverage):
    """Q of a source that tags `coverage` of the users, `right` of them rightly, and the table P(tag | category)."""
    k = len(base)
    given_truth = np.full((k, k + 1), coverage * (1 - right) / (k - 1))
    given_truth[np.arange(k), np.arange(1, k + 1)] = coverage * right
    given_truth[:, 0] = 1 - coverage
    joint = base[:, None] * given_truth
    return (joint / joint.sum(0)).T, given_truth


@given(st.integers(2, 4), st.lists(st.tuples(st.floats(0.3, 0.95), st.floats(0.2, 1)), min_size=1, max_size=3))
@settings(max_examples=30, deadline=None)
def test_bayes_by_brute_force(k, skills):
    base = np.random.default_rng(k).dirichlet(np.full(k, 5.0))
    made = [noisy_source(base, *skill) for skill in skills]
    rng = np.random.default_rng(0)
    tags = np.stack([rng.integers(0, k + 1, 20) for _ in made], axis=1)
    if any(coverage == 1 for _, coverage in skills):
        tags = np.maximum(tags, 1)  # nobody is untagged
    found = combined([q for q, _ in made], tags, base)
    for row, p in zip(tags, found, strict=True):
        expected = base * np.prod([table[:, a] for (_, table), a in zip(made, row, strict=True)], axis=0)
        assert p == pytest.approx(expected / expected.sum(), abs=1e-9)


def test_one_source_says_its_q():
    base = np.full(4, 0.25) @ TRUTH
    assert combined([TRUTH], [[0], [1], [2], [3]], base) == pytest.approx(TRUTH)


def test_copies_count_once_when_tempered():
    base = np.full(4, 0.25) @ TRUTH
    tags = [[a, a] for a in range(4)]
    assert combined([TRUTH, TRUTH], tags, base, temper=0.5) == pytest.approx(TRUTH)
    assert combined([TRUTH, TRUTH], tags, base)[1, 0] > TRUTH[1, 0]  # taken for independent, they are too sure


def test_sources_that_rule_out_every_category_leave_the_base():
    sure = np.array([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]])
    assert combined([sure, sure], [[1, 2]], [0.3, 0.7]).tolist() == [[0.3, 0.7]]


@pytest.mark.parametrize(
    ("tags", "base", "temper", "message"),
    [
        ([[1, 1]], [0.5, 0.5], 1, "one column a source"),
        ([[1]], [0.5, 0.4], 1, "sum to 1"),
        ([[1]], [1 / 3] * 3, 1, r"must be \[4, 3\]"),
        ([[3]], [0.5, 0.5], 1, "0 to 2"),
        ([[1]], [0.5, 0.5], 0, "temper"),
    ],
)
def test_bad_input_is_an_error(tags, base, temper, message):
    with pytest.raises(ValueError, match=message):
        combined([np.full((3, 2), 0.5)], tags, base, temper)


@pytest.mark.parametrize("copies", [0.0, 0.5, 1.0])
def test_raked_sources_are_right_however_much_they_copy(copies):
    """Two sources with the same errors; the second one repeats the first for some users."""
    errors, mix = np.array([[0.2, 0.6, 0.2], [0.2, 0.1, 0.7]]), np.array([0.3, 0.7])
    alone = np.einsum("c,ca,cb->abc", mix, errors, errors)
    joint = (1 - copies) * alone + copies * np.einsum("c,ca,ab->abc", mix, errors, np.eye(3))
    margins = [np.repeat(np.eye(3), 3, axis=0), np.tile(np.eye(3), (3, 1))]
    found = raked(np.vstack([errors.T] * 2)[None], mix[None], joint.sum(2).reshape(1, 9), margins)[0]
    there = joint.reshape(9, 2).sum(1) > 0
    wanted, naive = (
        each.reshape(9, 2)[there] / each.reshape(9, 2)[there].sum(1, keepdims=True) for each in (joint, alone)
    )
    users = joint.sum(2).ravel()[there]
    error, otherwise = (users @ np.abs(each - wanted).max(1) for each in (found[there], naive))
    assert error < 1e-6 if copies in (0, 1) else error < 0.8 * otherwise
