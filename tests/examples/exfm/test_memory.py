"""The newest rows are there to be learned from again, and a checkpoint holds them."""

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from examples.exfm.das.rows import joined
from examples.exfm.das.snapshots import Snapshots
from examples.exfm.errors import ExfmError
from examples.exfm.learner import Learner, Lessons
from examples.exfm.memory import Memory
from tests.examples.exfm.world import DRIFT, TINY, das, through


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return joined(through(das(tmp_path_factory.mktemp("snapshots")), DRIFT.events()))


def test_the_newest_rows_are_held_and_drawn_alike(rows):
    memory = Memory(DRIFT.schema, 100)
    memory.add(rows.take(slice(0, 60)))
    ids, _, _ = memory.draw(np.random.default_rng(0), 1000)
    assert set(map(tuple, ids.tolist())) == set(map(tuple, rows.ids[:60].tolist()))
    memory.add(rows.take(slice(60, 150)))
    ids, bag, label = memory.draw(np.random.default_rng(0), 5000)
    known = {tuple(i): (tuple(b), y) for i, b, y in zip(rows.ids, rows.bag, rows.label, strict=True)}
    newest = set(map(tuple, rows.ids[50:150].tolist()))
    assert set(map(tuple, ids.tolist())) == newest
    assert all(known[tuple(i)][0] == tuple(b) for i, b in zip(ids, bag, strict=True)) and 0 < label.mean() < 1
    again = Memory(DRIFT.schema, 100)
    again.restore(memory.arrays())
    for mine, theirs in zip(*(each.draw(np.random.default_rng(1), 50) for each in (memory, again)), strict=True):
        assert np.array_equal(mine, theirs)


def learner(folder, **options):
    return Learner(DRIFT.schema, TINY, Snapshots(folder), lessons=Lessons(**options))


def test_a_replay_steps_more_and_goes_on_from_a_checkpoint_with_the_same_bits(rows, tmp_path):
    straight, half = learner(tmp_path, replay=2, memory=300), learner(tmp_path, replay=2, memory=300)
    first = rows.take(rows.first)
    assert straight.learn(first) == len(first) // 256 == 1 and straight.steps == 3
    half.learn(first.take(slice(0, 200)))
    resumed = learner(tmp_path, replay=2, memory=300)
    resumed.restore(half.tensors())
    resumed.learn(first.take(slice(200, None)))
    mine, theirs = straight.tensors(), resumed.tensors()
    assert set(mine) == set(theirs) and all(mine[name].equal(theirs[name]) for name in mine)
    assert resumed.until == first.released[255]
    with pytest.raises(ExfmError, match="learns another way"):
        learner(tmp_path).restore(straight.tensors())


def test_the_past_is_learned_better_for_it(rows, tmp_path):
    def loss(of):
        logit, _ = of.model.eval()(torch.from_numpy(rows.ids).long(), torch.from_numpy(rows.bag).long())
        return binary_cross_entropy_with_logits(logit, torch.from_numpy(rows.label)).item()

    once, often = learner(tmp_path), learner(tmp_path, replay=40)
    for each in (once, often):
        each.learn(rows)
    assert loss(often) < 0.98 * loss(once)
