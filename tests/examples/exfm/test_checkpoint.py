import numpy as np
import pytest
import torch

from examples.exfm import checkpoint
from examples.exfm.checkpoint import Checkpoint
from examples.exfm.counters import Counters
from examples.exfm.distil.step import optimizer_of
from examples.exfm.students import StudentSpec
from tests.examples.exfm.distil.test_step import DRIFT, batch


def save(folder, number, value=0.0):
    checkpoint.save(folder, Checkpoint(number, {"a": torch.full((4,), value)}, {"position": {"hour": number}}))


def test_the_newest_counts_and_old_ones_go(tmp_path):
    assert checkpoint.load(tmp_path) is None
    for number in range(5):
        save(tmp_path, number, float(number))
    found = checkpoint.load(tmp_path)
    assert (found.number, found.tensors["a"].tolist(), found.said) == (4, [4.0] * 4, {"position": {"hour": 4}})
    assert len(list(tmp_path.iterdir())) == checkpoint.KEPT


@pytest.mark.parametrize("damage", ["cut", "bit", "empty"])
def test_a_damaged_one_is_named_and_the_one_before_counts(tmp_path, damage):
    save(tmp_path, 1, 1.0)
    save(tmp_path, 2, 2.0)
    path = tmp_path / "00000002.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "bit":
        content[-2] ^= 4
    path.write_bytes({"cut": content[:-3], "bit": content, "empty": b""}[damage])
    counters = Counters()
    assert checkpoint.load(tmp_path, counters).number == 1
    assert counters.counts == {"corrupt_checkpoint": 1} and path.name in counters.named[0]


def test_training_goes_on_to_the_same_bits(tmp_path):
    rows = [batch(hour) for hour in range(4)]

    def fresh():
        student, _ = StudentSpec("s", "feed", "early", "auxiliary").build(DRIFT.schema)
        return student, optimizer_of(student, 1e-2, 1e-2)

    def learn(student, optimizer, rows):
        for each in rows:
            loss = student.loss(student.heads(each.ids, each.bag), each.labels, each.labels, each.scored)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    whole = fresh()
    learn(*whole, rows)
    half = fresh()
    learn(*half, rows[:2])
    checkpoint.save(tmp_path, Checkpoint(0, checkpoint.training(*half, "x."), {}))
    later = fresh()
    checkpoint.resume(*later, checkpoint.load(tmp_path).tensors, "x.")
    learn(*later, rows[2:])
    for name, value in whole[0].state_dict().items():
        assert torch.equal(value, later[0].state_dict()[name]), name


def test_parts_of_a_checkpoint_are_found_by_their_prefix():
    found = Checkpoint(0, checkpoint.arrays({"x": np.arange(3), "y": np.ones((2, 2))}, "das."), {})
    assert set(found.part("das.")) == {"x", "y"} and found.part("das.")["x"].tolist() == [0, 1, 2]
