"""The metrics against their definitions, and the race's bookkeeping."""

import math

import pytest
import torch

from examples.metrics import Race, auc, log_loss, normalized_entropy


def test_auc_is_the_chance_of_a_right_order_with_ties_as_halves():
    torch.manual_seed(0)
    logits, labels = torch.randint(6, (200,)).float(), torch.randint(2, (200,)).float()
    gap = logits[labels == 1][:, None] - logits[labels == 0][None, :]
    expected = ((gap > 0).double() + (gap == 0).double() / 2).mean()
    assert auc(logits, labels) == pytest.approx(float(expected), abs=1e-12)
    assert auc(labels, labels) == 1.0 and auc(-labels, labels) == 0.0


@pytest.mark.parametrize("of", ["logits", "labels"])
def test_auc_of_nan_is_an_error(of):
    values = {"logits": torch.tensor([0.1, 0.2, 0.3]), "labels": torch.tensor([0.0, 1.0, 1.0])}
    values[of][1] = torch.nan
    with pytest.raises(ValueError, match=f"NaN in .*1 {of}"):
        auc(**values)


def test_auc_of_one_class_is_an_error():
    with pytest.raises(ValueError, match="both"):
        auc(torch.zeros(3), torch.ones(3))


def test_the_base_rate_has_an_entropy_of_one():
    labels = torch.tensor([1.0, 0.0, 0.0, 0.0])
    logits = torch.full((4,), math.log(1 / 3), dtype=torch.float64)
    assert normalized_entropy(logits, labels) == pytest.approx(1.0)
    assert log_loss(logits, labels) == pytest.approx(-(math.log(0.25) + 3 * math.log(0.75)) / 4)


def test_a_race_runs_every_variant_once_a_round():
    calls = []
    race = Race({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")})
    assert list(race.rounds(3)) == [0, 1, 2]
    assert sorted(calls[:2]) == sorted(calls[2:4]) == ["a", "b"] and len(calls) == 8  # one round of warming up
    race.times = {"a": [0.002, 0.004, 0.006], "b": [0.001, 0.002, 0.012]}
    assert race.ms("a") == pytest.approx(4.0) and race.speedup("b", over="a") == pytest.approx(2.0)
