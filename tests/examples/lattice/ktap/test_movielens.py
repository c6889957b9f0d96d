"""The stream of the comparison: counters that see no future, records that arrive before their impression."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from examples.lattice.data import Rows
from examples.lattice.ktap import bench, movielens
from examples.lattice.ktap.movielens import Stream, Teacher, counters
from examples.lattice.ktap.student import Use
from examples.movielens import UNKNOWN


def test_counters_are_those_of_strictly_earlier_seconds():
    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(1, 4, (300,), generator=generator)
    times = 880_000_000 + torch.randint(400, (300,), generator=generator).sort().values
    labels = torch.randint(2, (300,), generator=generator).float()
    at = times - torch.randint(0, 50, (300,), generator=generator).double()
    found = counters(keys, times, labels, at)
    for row in range(300):
        before = (keys == keys[row]) & (times < at[row])
        seen, liked = int(before.sum()), float(labels[before].sum())
        assert found[row].tolist() == pytest.approx(
            [torch.tensor(1.0 + seen).log().item(), (liked + 1) / (seen + 2) - 0.5], abs=1e-6
        )


def few(count: int = 200) -> Stream:
    generator = torch.Generator().manual_seed(0)
    ids = torch.stack([torch.arange(count) % 7, torch.arange(count) // 7], dim=1)
    times = torch.arange(count) * 100
    zeros = torch.zeros(count, dtype=torch.int64)
    labels = torch.randint(2, (count, 2), generator=generator).float()
    rows = Rows(ids, zeros[:, None], torch.zeros(count, 0), zeros, labels, times, ids[:, 0], ids[:, 1])
    before = torch.rand(count, generator=generator).double() * 1000 + 1
    parts = count // 2, count * 4 // 5
    return Stream(rows, ids, torch.randn(count, 4), times - before, (7, count), 1, *parts, (0.5, 0.3))


@pytest.mark.parametrize("ttl", [50.0, 500.0, 5000.0])
def test_a_record_is_read_if_its_time_is_not_over(ttl):
    found = few()
    torch.manual_seed(0)
    teacher = Teacher(found.cardinalities, found.bag, 8)
    given = movielens.through_the_store(found, teacher, ttl, 1.0, 0)
    age = (found.rows.times - found.scored)[found.first :]
    assert torch.equal(given.hit, age < ttl) and bool(given.hit.any())
    embedding, logits = movielens.ask(found, teacher, torch.arange(found.first, len(found.ids)))
    own = given.hit.nonzero().squeeze(1)
    torch.testing.assert_close(given.logits[own], logits[own])
    torch.testing.assert_close(given.embedding[own], embedding[own], atol=1e-3, rtol=1e-3)


def test_what_a_model_has_not_learned_is_unknown_to_it():
    found = few()
    last = torch.arange(found.second, len(found.ids))
    for start, stop in ((0, found.first), (found.first, found.second)):
        ids, bag = found.asked(last, start, stop)
        of_learned = [set(column.tolist()) for column in found.ids[start:stop].T]
        for row, original in zip(ids.tolist(), found.ids[last].tolist(), strict=True):
            known = zip(original, of_learned, strict=True)
            assert row == [value if value in learned else UNKNOWN for value, learned in known]
        assert bool((ids == UNKNOWN).any()) and bool((ids != UNKNOWN).any()) and torch.equal(bag, found.rows.bag[last])


def test_no_logits_depend_on_weights_that_nothing_taught():
    found = few()
    item = found.ids[:, 1]
    new = item.where(item <= item[found.second - 1], 199)  # another id in place of all that neither has learned
    changed = replace(found, ids=torch.stack([found.ids[:, 0], new], dim=1))
    teacher = movielens.teach(found, 0, epochs=1)
    given = movielens.through_the_store(found, teacher, 1e8, 1.0, 0)
    last = torch.arange(found.second, len(found.ids))
    for one, other in zip(movielens.ask(found, teacher, last), movielens.ask(changed, teacher, last), strict=True):
        assert torch.equal(one, other)
    logits = [movielens.study(each, given, Use(), 0, epochs=1) for each in (found, changed)]
    assert torch.equal(*logits)


def test_pairs_that_the_teacher_does_not_get_to_are_misses():
    found = few(400)
    teacher = Teacher(found.cardinalities, found.bag, 8)
    assert movielens.through_the_store(found, teacher, 1e8, 0.0, 0).hit.sum() == 0
    half = movielens.through_the_store(found, teacher, 1e8, 0.5, 0).hit.float().mean()
    assert half == pytest.approx(0.5, abs=0.1)


def test_transfer_is_the_share_of_the_teachers_gain():
    runs = {
        "no teacher": [{"ne": 0.95}],
        "the teacher": [{"ne": 0.85}],
        "soft labels alone": [{"ne": 0.93}],
        "KTAP": [{"ne": 0.88}],
    }
    found = bench.transfer(runs)
    assert found["soft labels alone"] == pytest.approx(0.2) and found["KTAP"] == pytest.approx(0.7)


@pytest.mark.slow
def test_the_bench_rehearses(tmp_path):
    bench.main(["--quick", "--seeds", "1", "--json", str(tmp_path / "r.json"), "--plot", str(tmp_path / "r.png")])
    found = json.loads((tmp_path / "r.json").read_text())
    assert set(found["runs"]["arms"]["1"]) == {*bench.ARMS, "the teacher"} and (tmp_path / "r.png").exists()
