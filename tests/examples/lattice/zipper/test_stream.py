"""A stream takes each released sample once, and a stopped run that goes on is the run that was never stopped."""

from __future__ import annotations

import pytest
import torch

from examples.lattice.zipper.joiner import Joiner, Released
from examples.lattice.zipper.log import log_of
from examples.lattice.zipper.model import Heads, plain
from examples.lattice.zipper.stream import Stream
from examples.lattice.zipper.windows import Windows

WINDOWS = Windows((3.0, 10.0, 25.0))
COUNT = 200
STOPS = [20.0, 50.0, 80.0, 200.0]


def problem():
    generator = torch.Generator().manual_seed(0)
    times = torch.randint(100, (COUNT,), generator=generator).double().sort().values
    ids = torch.randint(6, (COUNT, 3), generator=generator)
    delays = torch.rand(COUNT, generator=generator).double() * 40
    return log_of(times, ids[:, :2], delays), ids


def stream(taken: list[int]) -> Stream:
    log, ids = problem()
    torch.manual_seed(1)
    module = Heads((6, 6, 6), 1, 3, width=4, hidden=(8,))

    def loss(samples: Released):
        taken.extend(samples.rows.tolist())
        logits = module(ids[samples.rows], torch.zeros(len(samples), 1, dtype=torch.int64))
        return plain(logits.gather(1, samples.heads[:, None]).squeeze(1), samples.labels)

    return Stream(Joiner(log, WINDOWS), module, loss, batch=16)


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path, stop):
    whole, first, second = [], [], []
    never = stream(whole)
    for now in STOPS:
        never.until(now)
    stopped = stream(first)
    for now in STOPS[:stop]:
        stopped.until(now)
    stopped.save(tmp_path / "at.safetensors")
    again = stream(second)
    again.resume(tmp_path / "at.safetensors")
    for now in STOPS[stop:]:
        again.until(now)
    assert first + second == whole and again.steps == never.steps == COUNT // 16
    for name, value in never.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[name]), name
    assert [path.name for path in tmp_path.iterdir()] == ["at.safetensors"]


def test_samples_wait_for_a_full_batch_and_none_is_taken_twice():
    taken: list[int] = []
    run = stream(taken)
    for now in [*STOPS, 300.0]:
        run.until(now)
        assert len(taken) % 16 == 0 and len(run.waiting) < 16
    rest = run.waiting.rows.tolist()
    assert sorted(taken + rest) == list(range(COUNT))


def test_only_the_assigned_head_learns():
    log, ids = problem()
    module = Heads((6, 6, 6), 1, 3, width=4, hidden=(8,))
    before = module.heads.weight.detach().clone()
    rows = torch.arange(16)

    def loss(samples: Released):
        logits = module(ids[samples.rows], torch.zeros(len(samples), 1, dtype=torch.int64))
        return plain(logits.gather(1, samples.heads[:, None]).squeeze(1), samples.labels)

    run = Stream(Joiner(log, WINDOWS), module, loss, batch=16)
    run.optimizer = torch.optim.SGD(module.parameters(), 0.1)
    samples = Released(log.times[rows], rows, torch.ones(16, dtype=torch.int64), torch.ones(16), torch.zeros(16) > 0)
    run.waiting = samples
    run.until(float("-inf"))
    changed = (module.heads.weight != before).any(dim=1)
    assert changed.tolist() == [False, True, False]
