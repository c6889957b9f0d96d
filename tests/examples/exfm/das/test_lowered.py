"""Low precision is used while it is near enough, planned anew when a snapshot changes what was seen, and left when
not."""

import math

import pytest
import torch

from examples.exfm.das.lowered import Lowered, loss_rise, relative
from examples.exfm.das.rows import joined
from examples.exfm.das.scorers import Local, Scorer
from examples.exfm.errors import ExfmError
from tests.examples.exfm.world import DRIFT, TINY, das, publish, teacher, through

ANY = {"recipes": ("int8_rowwise",), "min_speedup": 0.0}


def inputs(rows, hour=0):
    _, _, ids, bag, _, _ = DRIFT.examples(hour)
    return torch.from_numpy(ids)[:rows], torch.from_numpy(bag)[:rows]


def test_the_loss_rises_by_what_wrong_scores_cost():
    p = torch.tensor([0.3, -1.0, 2.0])
    assert loss_rise(p, p) == pytest.approx(0, abs=1e-12) and relative(p, p) == 0
    even, off = torch.zeros(1), torch.full((1,), math.log(3))  # one half, taken for three quarters
    rise = (-0.5 * math.log(0.75) - 0.5 * math.log(0.25)) / math.log(2) - 1
    assert loss_rise(even, off) == pytest.approx(rise)
    assert loss_rise(p, p * torch.nan) == math.inf == relative(p, p * torch.nan)


def test_scores_are_near_and_any_number_of_rows_is_served_by_one_graph(op_by_op, fresh_dynamo):
    model, lowered = teacher(), Lowered(batch=32, options=ANY, max_loss=0.01, max_embedding=0.2)
    run = lowered(model)
    for rows in (32, 7, 80, 1):
        with torch.no_grad():
            logit, embedding = model(*inputs(rows))
        low, low_embedding = run(*inputs(rows))
        assert low.shape == (rows,) and 0 < loss_rise(logit, low) < 0.01
        assert 0 < relative(embedding, low_embedding) < 0.2
    [check] = lowered.checks
    assert check.lowered > 3 and lowered.counters.counts == {"plan_checked": 1}


def test_a_snapshot_that_changes_what_probe_saw_is_planned_anew(op_by_op, fresh_dynamo):
    """In the second snapshot one token's column dwarfs the others, which 8 bits a row cannot hold: its sites are
    kept."""
    model, lowered = teacher(), Lowered(batch=64, options=ANY, max_loss=1e-3, max_embedding=0.05)
    run = lowered(model)
    run(*inputs(64))
    before = {key: str(each.chosen) for key, each in lowered.plan.decisions.items()}
    with torch.no_grad():
        model.head[0].weight[:, :: TINY.width] *= 1e-4
        model.layers[0].norm.weight[0] = 1e4
    run = lowered(model)
    low, _ = run(*inputs(64))
    after = {key: str(each.chosen) for key, each in lowered.plan.decisions.items()}
    assert lowered.counters["replanned"] == 1 and before != after
    with torch.no_grad():
        assert lowered.exact or loss_rise(model(*inputs(64))[0], low) <= 1e-3


@pytest.mark.slow
def test_what_cannot_be_near_enough_is_run_as_it_is(op_by_op, fresh_dynamo):
    model, lowered = teacher(), Lowered(batch=32, options=ANY, max_loss=0.0)
    run = lowered(model)
    low, _ = run(*inputs(32))
    with torch.no_grad():
        assert torch.equal(low, model(*inputs(32))[0])
    assert lowered.counters.counts == {"plan_checked": 2, "replanned": 1, "exact_instead": 1}
    lowered(model)
    assert not lowered.exact  # the next snapshot is tried again


@pytest.mark.slow
def test_das_scores_by_it_at_every_snapshot(op_by_op, fresh_dynamo, tmp_path):
    publish(tmp_path, [1, 2])
    lowered = Lowered(batch=64, options=ANY, max_loss=0.01, max_embedding=0.2)
    chunks = list(DRIFT.events())
    service = das(tmp_path, scorers=Local(Scorer(tmp_path, lowered)), delay=3600)
    rows = joined(through(service, chunks))
    exact = joined(through(das(tmp_path, delay=3600), chunks))
    assert rows.id.tolist() == exact.id.tolist() and set(rows.version.tolist()) == {1, 2}
    assert 0 < loss_rise(torch.from_numpy(exact.logit), torch.from_numpy(rows.logit)) < 0.01
    assert len(lowered.checks) - service.counters["replanned"] == 2 and service.counters["plan_checked"] >= 2


def test_a_wrong_how_is_an_error():
    with pytest.raises(ExfmError, match="one of eager, inductor, loka, not in 'fast'"):
        Lowered("fast")
