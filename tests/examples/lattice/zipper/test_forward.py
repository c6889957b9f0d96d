"""A module that draws, and that keeps more than its weights, goes on bit by bit after a stop and a failed step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from examples.lattice.data import DataError
from examples.lattice.zipper import stream as streams
from examples.lattice.zipper.forward import generators, noted, unlisted
from examples.lattice.zipper.joiner import Joiner, Released
from examples.lattice.zipper.stream import Stream
from tests.examples.lattice.zipper.test_stream import STOPS, WINDOWS, problem

LOG, _ = problem()
INPUTS = torch.randn(len(LOG), 4, generator=torch.Generator().manual_seed(2))


class Drawing(nn.Module):
    """Dropout, a BatchNorm's statistics, and two means that a state_dict does not have: one is written in place, one
    anew. A constant lies in memory that cannot be written."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 3))
        self.register_buffer("in_place", torch.zeros(4), persistent=False)
        self.register_buffer("anew", torch.zeros(4), persistent=False)
        self.register_buffer("constant", torch.ones(1).expand(4), persistent=False)

    def forward(self, x):
        self.in_place.lerp_(x.mean(0), 0.1)
        self.anew = self.anew.lerp(x.mean(0), 0.1)
        return self.net((x - self.in_place - self.anew) * self.constant)


def stream(dtype: torch.dtype = torch.float32) -> Stream:
    torch.manual_seed(1)
    module = Drawing().to(dtype)

    def loss(samples: Released):
        logits = module(INPUTS[samples.rows].to(dtype)).float().gather(1, samples.heads[:, None]).squeeze(1)
        return nn.functional.binary_cross_entropy_with_logits(logits, samples.labels)

    return Stream(Joiner(LOG, WINDOWS), module, loss, batch=16)


def never_stopped() -> dict[str, torch.Tensor]:
    whole = stream()
    for now in STOPS:
        whole.until(now)
    return everything(whole)


def everything(run: Stream) -> dict[str, torch.Tensor]:
    return {
        name: value.detach().clone() for name, value in (*run.module.named_parameters(), *run.module.named_buffers())
    }


def assert_same(run: Stream, expected: dict[str, torch.Tensor]) -> None:
    found = everything(run)
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []


@pytest.mark.parametrize("stop", [1, 3])
def test_a_stopped_run_draws_on_as_if_it_had_not_stopped(tmp_path, stop):
    expected = never_stopped()
    stopped = stream()
    for now in STOPS[:stop]:
        stopped.until(now)
    stopped.save(tmp_path / "at.safetensors")
    again = stream()
    torch.rand(7)  # whatever else the process drew
    again.resume(tmp_path / "at.safetensors")
    for now in STOPS[stop:]:
        again.until(now)
    assert_same(again, expected)


@pytest.mark.parametrize("where", ["backward", "step"])
def test_a_batch_that_failed_is_repeated_with_its_draws_and_on_its_buffers(monkeypatch, where):
    expected = never_stopped()
    run = stream()
    run.until(STOPS[0])
    before = everything(run)

    def stops(*_, **__):
        raise KeyboardInterrupt

    owner = run.optimizer if where == "step" else torch.Tensor
    with monkeypatch.context() as patched:
        patched.setattr(owner, where, stops)
        with pytest.raises(KeyboardInterrupt):
            run.until(STOPS[1])
    assert_same(run, before)
    for now in STOPS[1:]:
        run.until(now)
    assert_same(run, expected)


def test_a_checkpoint_of_another_type_is_refused_and_not_rounded(tmp_path):
    run = stream()
    run.until(STOPS[1])
    run.save(tmp_path / "at.safetensors")
    other = stream(torch.bfloat16)
    before = everything(other)
    with pytest.raises(DataError, match=r"parameters: .*, of torch\.float32, .*, of torch\.bfloat16, .* here"):
        other.resume(tmp_path / "at.safetensors")
    assert_same(other, before)


def test_what_a_state_dict_leaves_out_is_known():
    assert sorted(unlisted(Drawing())) == ["anew", "constant", "in_place"] and generators(Drawing()).keys() == {"cpu"}
    assert unlisted(nn.BatchNorm1d(3)) == {}


def test_what_was_noted_is_put_back_where_it_was():
    module = Drawing()
    in_place, anew = module.in_place, module.anew
    put_back = noted(module)
    first = module(INPUTS[:16]), torch.rand(3)
    put_back()
    assert module.in_place is in_place and module.anew is anew and not in_place.any() and not anew.any()
    again = module(INPUTS[:16]), torch.rand(3)
    assert all(map(torch.equal, first, again))


def test_two_checkpoints_whose_names_differ_behind_the_dot_alone_do_not_meet(tmp_path, monkeypatch):
    written = []
    real = streams.save_file
    monkeypatch.setattr(streams, "save_file", lambda tensors, path: (written.append(path), real(tensors, path)))
    for name in ("run.a", "run.b"):
        stream().save(tmp_path / name)
    assert len(set(written)) == 2 and sorted(path.name for path in tmp_path.iterdir()) == ["run.a", "run.b"]
