"""What the baselines train on: never a label that was not there, but for the oracle, which this test catches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given

from examples.lattice.data import DataError
from examples.lattice.zipper import schedules
from examples.lattice.zipper.log import log_of
from examples.lattice.zipper.schedules import Replay
from tests.examples.lattice.zipper.logs import clocks, logs

HONEST = {
    "single": lambda log: schedules.single(log, 10.0, 1),
    "immediate": lambda log: schedules.immediate(log, 25.0, 2),
    "elapsed": lambda log: schedules.elapsed(log, 3.0, 25.0, 2),
}


def until(schedule, now):
    part = Replay(schedule).advance(now)
    columns = part.ready, part.rows, part.labels, part.later, part.delays
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize("name", HONEST)
@given(log=logs(), stops=clocks)
def test_a_schedule_knows_nothing_of_the_future(name, log, stops):
    make, now = HONEST[name], stops[-1]
    assert until(make(log.until(now)), now) == until(make(log), now)


def test_the_oracle_sees_the_future_and_the_test_above_would_catch_it():
    log = log_of(torch.tensor([0.0]).double(), torch.zeros(1, 2, dtype=torch.int64), torch.tensor([5.0]).double())
    ahead, then = schedules.future(log, 25.0, 2), schedules.future(log.until(1.0), 25.0, 2)
    assert until(ahead, 1.0) != until(then, 1.0)


@given(logs())
def test_samples_of_the_baselines(log):
    delays = log.delays()
    first = schedules.elapsed(log, 3.0, 25.0, 2)
    again = first[first.later]
    assert sorted(again.rows.tolist()) == ((delays > 3) & (delays <= 25)).nonzero().flatten().tolist()
    assert bool((again.labels == 1).all()) and torch.equal(again.ready, log.times[again.rows] + delays[again.rows])
    waited = first[~first.later]
    assert sorted(waited.rows.tolist()) == list(range(len(log)))
    assert torch.equal(waited.labels, (delays[waited.rows] <= 3).float())
    assert torch.equal(waited.ready, log.times[waited.rows] + 3)
    for part in (again, waited):
        assert torch.equal(part.delays, delays[part.rows].where(part.labels > 0, float("inf")))
    whole = schedules.single(log, 10.0, 1)
    assert torch.equal(whole.labels, (delays[whole.rows] <= 10).float()) and bool((whole.heads == 1).all())


@given(logs(), clocks)
def test_a_replay_hands_out_each_sample_once_and_goes_on_from_its_state(log, stops):
    schedule = schedules.elapsed(log, 3.0, 25.0, 2)
    replay, found = Replay(schedule), []
    for now in [*stops, 100.0]:
        found += replay.advance(now).rows.tolist()
        other = Replay(schedule)
        other.resume(replay.state())
        replay = other
    assert found == schedule.rows.tolist()
    with pytest.raises(ValueError, match="cannot go back"):
        replay.advance(1.0)


def test_a_state_of_another_schedule_is_refused_and_one_that_grew_is_not():
    log = log_of(torch.arange(5).double(), torch.zeros(5, 2, dtype=torch.int64), torch.full((5,), 5.0).double())
    replay = Replay(schedules.single(log.until(3.0), 1.0, 0))
    assert len(replay.advance(3.0)) == 3
    grown = Replay(schedules.single(log, 1.0, 0))
    grown.resume(replay.state())
    assert grown.advance(9.0).rows.tolist() == [3, 4]
    for other in (schedules.single(log, 2.0, 0), schedules.single(log, 1.0, 1), schedules.future(log, 9.0, 0)):
        with pytest.raises(DataError, match=r"schedule: 3 samples until 3 s .* in the checkpoint, \d samples"):
            Replay(other).resume(replay.state())
