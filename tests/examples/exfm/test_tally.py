"""Qualities from parts are those of the whole."""

import numpy as np
import pytest
import torch

from examples.exfm.tally import DAY, Daily, Tally
from examples.metrics import auc, normalized_entropy


def tally(logit, label, parts=1):
    found = Tally()
    for z, y in zip(np.array_split(np.float32(logit), parts), np.array_split(np.float32(label), parts), strict=True):
        found.add(z, y)
    return found.quality()


def test_qualities_are_those_of_their_definitions():
    perfect = tally([-9, -9, 9, 9], [0, 0, 1, 1])
    assert perfect.ne < 0.001 and perfect.auc == 1.0 and perfect.calibration == pytest.approx(1, abs=1e-3)
    base = tally(np.zeros(4), [0, 0, 1, 1])
    assert base.ne == pytest.approx(1) and base.auc == 0.5 and base.rate == 0.5
    assert tally([0, 0], [1, 1]).ne is None and Tally().quality().rows == 0
    assert tally([-100, 100], [1, 0]).ne == pytest.approx(100 / np.log(2)) and tally([-100, 100], [0, 1]).auc == 1


def test_in_any_number_of_parts_they_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    logit = rng.normal(size=5000).astype(np.float32)
    label = (rng.random(5000) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    whole, logits, labels = tally(logit, label, 7), torch.from_numpy(logit), torch.from_numpy(label)
    assert whole.ne == pytest.approx(normalized_entropy(logits, labels), rel=1e-6)
    assert whole.auc == pytest.approx(auc(logits, labels), abs=1e-4) and whole.rows == 5000
    assert whole.calibration == pytest.approx(float(logits.sigmoid().mean() / labels.mean()), rel=1e-5)


def test_days_are_counted_from_the_first_and_some_do_not_count():
    daily = Daily(5, skip=1)
    label = np.array([0, 1, 0, 1], np.float32)
    for rows in (slice(0, 3), slice(3, 4)):
        time, logit = np.array([5, DAY - 1, DAY + 5, DAY + 6]), np.array([-9, 9, 0, 0], np.float32)
        daily.add(time[rows], logit[rows], label[rows])
    assert daily.total().rows == 2 and daily.total().ne == pytest.approx(1) and daily.by_day()[0].ne < 0.001
