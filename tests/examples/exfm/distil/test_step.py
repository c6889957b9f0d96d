"""The three steps come in order, each moves what it should, and a student learns."""

import copy

import pytest
import torch

from examples.exfm.distil.step import Batch, optimizer_of, step
from examples.exfm.stream.drift import Drift
from examples.exfm.students import ARMS, STAGES, StudentSpec

DRIFT = Drift(hours=4, rate=256)


def batch(hour=0):
    _, _, ids, bag, label, _ = DRIFT.examples(hour)
    ids, bag, label = (torch.from_numpy(each) for each in (ids, bag, label))
    logit = torch.from_numpy(DRIFT.probability(*(each.numpy() for each in (ids, bag)), DRIFT.examples(hour)[1])).logit()
    return Batch(ids, bag, label.float(), logit.float(), torch.ones(len(label), dtype=torch.bool))


@pytest.mark.parametrize("arm", ARMS)
def test_a_step_is_the_three_steps(arm):
    spec = StudentSpec("s", "feed", "early", arm, beta=1.0 if arm == "shared" else 2.0, weight=3.0)
    rows = batch()
    student, adapter = spec.build(DRIFT.schema)
    before = copy.deepcopy((student, adapter))
    optimizer = optimizer_of(student, 0.1, 0.1)
    own = torch.optim.SGD(adapter.parameters(), lr=0.5) if adapter else None
    loss = step(student, optimizer, rows, adapter, own)
    target = None
    if adapter:
        assert not torch.equal(adapter.affine.weight, before[1].affine.weight)
        target = adapter.target(rows.logit)  # that of the adapter after its own step
        assert not torch.equal(target, before[1].target(rows.logit))
    expected = before[0].loss(
        before[0].heads(rows.ids, rows.bag), rows.labels, rows.logit.sigmoid(), rows.scored, target
    )
    assert loss == pytest.approx(expected.item())
    assert not torch.equal(student.serving.weight, before[0].serving.weight)


def test_an_adapter_needs_an_optimizer():
    student, adapter = StudentSpec("s", "feed", "early").build(DRIFT.schema)
    with pytest.raises(ValueError, match="optimizer of its own"):
        step(student, optimizer_of(student, 0.1, 0.1), batch(), adapter)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_learns(stage):
    student, adapter = StudentSpec("s", "feed", stage, seed=3).build(DRIFT.schema)
    optimizer, own = optimizer_of(student, 3e-3, 3e-2), torch.optim.Adam(adapter.parameters(), lr=1e-3)
    rows = [batch(hour) for hour in range(4)]
    losses = [step(student, optimizer, each, adapter, own) for _ in range(6) for each in rows]
    assert sum(losses[-4:]) < sum(losses[:4]) - 0.1
    assert student(rows[0].ids, rows[0].bag).shape == (256,)


def test_arms_begin_alike():
    built = [StudentSpec("s", "feed", "late", arm).build(DRIFT.schema)[0] for arm in ARMS]
    rows = batch()
    with torch.no_grad():
        first, *others = (each(rows.ids, rows.bag) for each in built)
    assert all(torch.equal(first, other) for other in others)
