"""Users whose truth is known: their confusion matrix is Q."""

import numpy as np
import pytest

from examples.audience.quality.methods import holdout
from loka_compile.sampling.intervals import Bootstrap
from tests.examples.audience.quality.drawn import TRUTH


def users(n, seed, share=(0.25, 0.25, 0.25, 0.25)):
    rng = np.random.default_rng(seed)
    tags = rng.choice(4, n, p=share)
    return tags, np.array([rng.choice(3, p=TRUTH[tag]) for tag in tags])


def test_q_is_the_confusion_matrix():
    tags, truth = users(4000, 0)
    found = holdout(tags, truth, 3)
    for a in range(4):
        assert found.q[a].tolist() == pytest.approx(np.bincount(truth[tags == a], minlength=3) / (tags == a).sum())
    right = (tags > 0) & (truth == tags - 1)
    assert found.scores["accuracy"].value == pytest.approx(right.sum() / (tags > 0).sum())
    assert found.scores["coverage"].value == pytest.approx((tags > 0).mean())
    assert found.flags == () and found.rank == 4


def test_its_intervals_cover_the_truth_at_about_their_rate():
    hits = []
    for seed in range(60):
        found = holdout(*users(400, seed), 3, Bootstrap(150, 0.9, seed))
        hits.append(((found.low <= TRUTH) & (found.high >= TRUTH)).mean())
    assert 0.87 <= np.mean(hits) <= 0.94  # nominal: 0.9


def test_a_tag_no_known_user_has_is_undetermined():
    found = holdout(*users(500, 0, (0.5, 0.5, 0, 0)), 3)
    assert "[2, 3]" in found.flags[0] and found.rank == 2
    assert (found.low[2:] == 0).all() and (found.high[2:] == 1).all()
    assert (found.scores["accuracy"].low, found.scores["accuracy"].high) == (0, 1)


@pytest.mark.parametrize(
    ("tags", "truth", "message"),
    [
        ([], [], "N >= 1"),
        ([0, 1], [0], r"\(2,\) and \(1,\)"),
        ([4], [0], "0 to 3"),
        ([1], [3], "0 to 2"),
        ([-1], [0], "0 to 3"),
    ],
)
def test_bad_users_are_errors(tags, truth, message):
    with pytest.raises(ValueError, match=message):
        holdout(tags, truth, 3)
