"""A stream takes each released sample once, and a stopped run that goes on is the run that was never stopped."""

from __future__ import annotations

import pytest
import torch

from examples.lattice.data import DataError
from examples.lattice.zipper import schedules
from examples.lattice.zipper.joiner import Joiner, Released
from examples.lattice.zipper.log import Reader, log_of
from examples.lattice.zipper.model import Heads, plain
from examples.lattice.zipper.schedules import Replay
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


def stream(taken: list[int], source: Joiner | Replay | None = None) -> Stream:
    log, ids = problem()
    torch.manual_seed(1)
    module = Heads((6, 6, 6), 1, 3, width=4, hidden=(8,))

    def loss(samples: Released):
        taken.extend(samples.rows.tolist())
        logits = module(ids[samples.rows], torch.zeros(len(samples), 1, dtype=torch.int64))
        return plain(logits.gather(1, samples.heads[:, None]).squeeze(1), samples.labels)

    return Stream(source or Joiner(log, WINDOWS), module, loss, batch=16)


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


class Tied(torch.nn.Module):
    """Two names for one weight, and a buffer that is a part of another, turned around."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.register_buffer("seen", torch.arange(6.0).view(2, 3))
        self.register_buffer("part", self.seen[:, 1:].T)

    def forward(self, heads):
        return self.second(self.first(torch.nn.functional.one_hot(heads, 3).float() + self.part.sum())).sum(1)


def test_a_module_of_tied_parameters_goes_on_bit_by_bit(tmp_path):
    def tied() -> Stream:
        torch.manual_seed(1)
        module = Tied()
        return Stream(
            Joiner(problem()[0], WINDOWS),
            module,
            lambda samples: plain(module(samples.heads), samples.labels),
            batch=16,
        )

    whole, stopped, again = tied(), tied(), tied()
    whole.until(STOPS[1])
    whole.until(STOPS[-1])
    stopped.until(STOPS[1])
    stopped.save(tmp_path / "at.safetensors")
    again.resume(tmp_path / "at.safetensors")
    again.until(STOPS[-1])
    assert again.module.first.weight is again.module.second.weight and again.steps == whole.steps > stopped.steps
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[name]), name
    untied = tied()
    untied.module.second.weight = torch.nn.Parameter(untied.module.first.weight.detach().clone())
    with pytest.raises(DataError, match=r"parameters: 3 of 15 numbers,.* 4 of 24 numbers"):
        untied.resume(tmp_path / "at.safetensors")


def test_samples_wait_for_a_full_batch_and_none_is_taken_twice():
    taken: list[int] = []
    run = stream(taken)
    for now in [*STOPS, 300.0]:
        run.until(now)
        assert len(taken) % 16 == 0 and len(run.waiting) < 16
    rest = run.waiting.rows.tolist()
    assert sorted(taken + rest) == list(range(COUNT))


def buffered(count: int) -> torch.nn.Module:
    """The streams' model with one more buffer."""
    module = Heads((6, 6, 6), 1, 3, width=4, hidden=(8,))
    module.register_buffer("more", torch.zeros(count))
    return module


def interrupted(run: Stream, at: int) -> None:
    """Ctrl-C in the loss of the batch with number `at`."""
    loss, calls = run.loss, iter(range(1000))

    def stops(samples: Released):
        if next(calls) == at:
            raise KeyboardInterrupt
        return loss(samples)

    run.loss = stops


@pytest.mark.parametrize("kind", ["joiner", "replay"])
@pytest.mark.parametrize("saved", [False, True])
def test_what_an_interrupted_step_had_before_it_is_learned_once_and_nothing_is_lost(tmp_path, saved, kind):
    log, _ = problem()
    source = {"joiner": lambda: Joiner(log, WINDOWS), "replay": lambda: Replay(schedules.single(log, 10.0, 1))}[kind]
    whole, taken = [], []
    never, run = stream(whole, source()), stream(taken, source())
    for now in STOPS:
        never.until(now)
    interrupted(run, 4)
    with pytest.raises(KeyboardInterrupt):
        run.until(STOPS[-1])  # all in one: twelve batches
    assert len(taken) == 4 * 16 and len(run.waiting) == COUNT - 4 * 16 and run.steps == 4
    if saved:
        run.save(tmp_path / "at.safetensors")
        run = stream(taken, source())
        run.resume(tmp_path / "at.safetensors")
    run.until(STOPS[-1])
    assert taken == whole and run.steps == never.steps
    for name, value in never.module.state_dict().items():
        assert torch.equal(value, run.module.state_dict()[name]), name


@pytest.mark.parametrize("where", ["step", "backward"])
def test_a_batch_waits_until_its_step_is_done(monkeypatch, where):
    run = stream([])
    waiting = []

    def stops(*_, **__):
        waiting.append(len(run.waiting))
        raise RuntimeError("no memory")

    owner = run.optimizer if where == "step" else torch.Tensor
    with monkeypatch.context() as patched:
        patched.setattr(owner, where, stops)
        with pytest.raises(RuntimeError, match="no memory"):
            run.until(STOPS[-1])
    assert waiting == [COUNT] and len(run.waiting) == COUNT and run.steps == 0
    run.until(STOPS[-1])
    assert len(run.waiting) == COUNT % 16 and run.steps == COUNT // 16


@pytest.mark.parametrize("at", range(3))
def test_a_source_that_is_interrupted_moves_back(monkeypatch, at):
    """Ctrl-C while samples are released: before, within and after the source's own work."""
    whole, taken = [], []
    never, run = stream(whole), stream(taken)
    for each in (never, run):
        each.until(STOPS[0])
    places = ((Reader, "impressions"), (Joiner, "_released"), (torch, "cat"))
    with monkeypatch.context() as patched:
        patched.setattr(*places[at], stopping)
        with pytest.raises(KeyboardInterrupt):
            run.until(STOPS[-1])
    for each in (never, run):
        each.until(STOPS[-1])
    assert taken == whole and len(set(taken)) == len(taken) == COUNT // 16 * 16


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"batch": 32}, "batch: 16 in the checkpoint, 32 here"),
        ({"rate": 0.01}, "rate: 0.001 in the checkpoint, 0.01 here"),
        ({"module": torch.nn.Linear(1, 1)}, r"parameters: \d+ of \d+ numbers,.*, 2 of 2 numbers, .* here"),
        ({"module": buffered(2)}, r"parameters: .* with checksum \w+ in the checkpoint, .* with checksum \w+ here"),
        ({"source": Joiner(problem()[0], Windows((3.0, 10.0, 26.0)))}, "windows: "),
        ({"source": Replay(schedules.single(problem()[0], 10.0, 1))}, "schedule: not written down in it"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_changes_nothing(tmp_path, changed, error):
    run = stream([])
    run.until(STOPS[1])
    run.save(tmp_path / "at.safetensors")
    fresh = stream([])
    given = {"source": fresh.source, "module": fresh.module, "loss": fresh.loss, "batch": 16}
    other = Stream(**{**given, **changed})
    before = [value.clone() for value in other.module.parameters()]
    with pytest.raises(DataError, match=error):
        other.resume(tmp_path / "at.safetensors")
    assert all(map(torch.equal, before, other.module.parameters())) and other.steps == len(other.waiting) == 0


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="a batch of 1 sample or more, got 0"):
        Stream(Joiner(problem()[0], WINDOWS), torch.nn.Linear(1, 1), lambda samples: torch.zeros(()), batch=0)


def stopping(*_, **__):
    raise KeyboardInterrupt


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
    heads, ready = torch.ones(16, dtype=torch.int64), log.times[rows]
    run.waiting = Released(ready, rows, heads, torch.ones(16), torch.zeros(16) > 0, torch.ones_like(ready))
    run.until(float("-inf"))
    changed = (module.heads.weight != before).any(dim=1)
    assert changed.tolist() == [False, True, False]
