"""What a run decides: copies by gradients, sizes that come back from JSON, rows of a rehearsal."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from examples.lattice.data import DataError
from examples.lattice.networks import samples
from examples.lattice.networks.size import Size
from examples.lattice.pipeline import stages
from examples.lattice.pipeline.arms import tuples
from examples.lattice.pipeline.stages import copies_of, size_of
from examples.lattice.sketch.search import Found
from examples.lattice.sketch.terms import Bounds, Cost
from tests.examples.lattice.networks.small import network, toy
from tests.examples.lattice.partitioner.test_groups import opposed

VALUES = {"width": 8, "layers": 1, "tokens": 4, "k": 5, "hidden": 40, "keys": 8}
BEST = Found(VALUES, 0.7, Cost(1.0, 1.0), 0.7, 1, 1)


def portfolios(*gradients):
    return [SimpleNamespace(gradient=torch.tensor(each).expand(4, 1, -1)) for each in gradients]


def test_domains_share_a_copy_where_gradients_agree():
    of = portfolios([1.0, 0.0], [0.9, 0.2], [0.0, 1.0], [0.1, 1.0])
    assert copies_of(4, dict(enumerate(range(4))), of) == [0, 0, 1, 1]
    assert copies_of(2, {0: 0, 1: 0, 2: 1}, of) == [0, 1]  # a domain's gradient is the sum over its portfolios
    assert copies_of(3, {2: 2}, of) == [0, 0, 0]  # one domain alone, the others are not asked for
    assert copies_of(2, {0: 0, 1: 1}, portfolios([1.0, 0.0], [-1.0, 0.0])) == [0, 1]


def test_a_domain_whose_gradient_is_chance_has_no_copy_of_its_own():
    of = portfolios([1.0, 0.0], [0.0, 1.0], [0.0, 0.0])
    of[0].gradient = torch.stack([torch.ones(1, 2), -torch.ones(1, 2)] * 2)
    assert copies_of(3, dict(enumerate(range(3))), of) == [0, 0, 0]
    of[2] = portfolios([1.0, 0.0])[0]
    assert copies_of(3, dict(enumerate(range(3))), of) == [0, 0, 1]


def test_labels_that_judge_the_networks_do_not_decide_who_shares_one():
    decided_on, judged = stages.load("clothing", False, 3), samples.load("clothing", 3)
    assert torch.equal(decided_on.test.labels, judged.labels[judged.test])
    assert torch.equal(decided_on.train.labels, judged.labels[judged.train])
    with pytest.raises(DataError, match="there is no 'mine'; there are movielens, clothing"):
        stages.load("mine", False, 0)


def test_each_set_of_features_has_trials_of_its_own(tmp_path, monkeypatch):
    found, asked = toy(), []
    monkeypatch.setattr(stages, "search", lambda *_, storage, said, **__: asked.append((storage, said)) or BEST)
    each = [
        (found, [0, 0, 0], 0),
        (found.with_fields(("a",)), [0, 0, 0], 0),
        (found.with_fields(("a",), bag=False), [0, 0, 0], 0),
        (found, [0, 0, 1], 0),
        (found, [0, 0, 0], 1),
    ]
    for which, untied, seed in (*each, each[0]):
        stages.sketched(which, untied, 1, Bounds(0.0, 1.0), tmp_path, seed, lambda losses, *_: losses)
    files = [storage for storage, _ in asked]
    assert len({*files}) == len(each) and files[0] == files[-1]
    for file, said in asked:
        assert all(file != other or said == its for other, its in asked)


def test_data_of_any_name_are_grouped():
    found = opposed(400)
    plain = stages.grouped(found, 0)
    assert sorted(key for group in plain["groups"] for key in group) == [(0, 0), (1, 0), (2, 0)]
    assert stages.grouped(found, 0, [60.0])["names"] == plain["names"]  # the delay of all
    with pytest.raises(ValueError, match="a delay for each of 1 tasks, got 2"):
        stages.grouped(found, 0, [60.0, 0.0])


def test_what_compiling_takes_is_no_cost_of_steps():
    assert stages.seconds_of([5.0, 65.0, 66.0, 68.0]) == 4.5
    assert stages.seconds_of([5.0, 6.0]) == 1 and stages.seconds_of([5.0]) == 0


def test_a_training_that_compiles_costs_what_its_steps_do(monkeypatch):
    found, model, clock = toy(), network(), [0.0]
    monkeypatch.setattr(stages, "time", SimpleNamespace(process_time=lambda: clock[0]))

    def call(*of):
        clock[0] += 1.0 if clock[0] else 100.0
        return model(*of)

    assert stages.finish(lambda losses, *_: losses, model, found, found.train, "", call, steps=5) == 5


def test_a_size_comes_back_from_json():
    size = size_of(VALUES, [0, 1, 0])
    assert size == Size(width=8, layers=1, tokens=4, k=5, hidden=(40,), keys=8, untied=(0, 1, 0))
    assert Size(**tuples(json.loads(json.dumps(asdict(size))))) == size
