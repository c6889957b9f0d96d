"""Layers of a model by kernel and parameter, their bytes and seconds under each strategy."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from examples.lattice.data import DataError
from examples.lattice.sketch import layers
from examples.lattice.sketch.layers import REST, Cluster, Part, change_of, kept, layer_of, layers_of, parts_of
from examples.lattice.sketch.sharding import shard
from tests.examples.lattice.networks.small import SIZE, inputs, network

CLUSTER = Cluster(gpus=4, link=1e6, start=0.5, memory=1000)


def test_a_kernel_belongs_to_the_layer_of_its_module():
    model = network()
    assert layer_of("transformers.1.itself.q#0:grad_weight", model) == "transformers.1"
    assert layer_of("mixing.norm", model) == "mixing" and layer_of("tasks.0.copies.0.2#1:output", model) == "tasks.0"
    assert layer_of("", model) == layer_of("elsewhere.0", model) == REST


def test_every_parameter_and_every_second_is_in_one_layer():
    model = network()
    seconds = {"fusions.0": 2.0, "features.categorical": 0.5, REST: 0.25}
    parts = parts_of(model, seconds, batch=10, lookups={"features.categorical": 4})
    own = {part.name: part for part in parts}
    assert sum(part.tables + part.weights for part in parts) == sum(p.numel() for p in model.parameters())
    assert sum(part.seconds for part in parts) == sum(seconds.values())
    assert (
        own["features.categorical"].tables == 8 * (7 + 5 + 4 + 6)
        and own["features.categorical"].vectors == 10 * 4 * 8 * 2
    )
    assert own["fusions.0"].tables == own["fusions.0"].vectors == 0 and own[REST].tables == 0
    assert own[REST].weights == model.base.numel() > 0  # the one parameter that lies in no layer


class Shared(nn.Module):
    """A parameter of its own, one of a list's own, one tower twice, and before the table a head of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.zeros(100))
        self.head, self.table = nn.Linear(8, 1000), nn.Embedding(1000, 8)
        self.head.weight = self.table.weight
        self.towers = nn.ModuleList([nn.Linear(8, 8, bias=False)] * 2)
        self.towers.register_parameter("scale", nn.Parameter(torch.zeros(7)))


def test_a_parameter_that_two_layers_share_or_none_has_is_counted_once():
    model = Shared()
    parts = {part.name: (part.tables, part.weights) for part in parts_of(model, {}, 10, {"table": 1})}
    assert parts == {
        "head": (0, 1000),  # its bias
        "table": (8000, 0),
        "towers.0": (0, 64),
        REST: (0, 107),
    }
    assert sum(map(sum, parts.values())) == sum(p.numel() for p in model.parameters())
    rest = layers_of([Part(REST, 1.0, weights=100)], CLUSTER)[0]
    assert rest.memory["replicated"] == 1600 and rest.seconds["replicated"] > 1.0


def test_bytes_and_seconds_of_each_strategy():
    tables, weights, rest = layers_of([Part("a", 3.0, tables=8, weights=100, vectors=40), Part(REST, 1.0)], CLUSTER)
    assert tables.memory == {"replicated": 128, "by rows": 32}
    moved = lambda size, times: times * (0.5 + size * 3 / 4 / 1e6)  # noqa: E731
    assert tables.seconds == pytest.approx({"replicated": moved(16, 2), "by rows": moved(40, 2)})
    assert weights.memory == {"replicated": 1600, "state sharded": 200 + 350, "sharded": 400}
    assert weights.seconds == pytest.approx(
        {"replicated": 3 + moved(200, 2), "state sharded": 3 + moved(200, 2), "sharded": 3 + moved(200, 3)}
    )
    assert rest.seconds == {"replicated": 1.0} and rest.memory == {"replicated": 0}


def test_one_gpu_moves_nothing_and_fewer_are_none():
    alone = replace(CLUSTER, gpus=1)
    layers = layers_of([Part("a", 3.0, tables=8, weights=50, vectors=40), Part(REST, 1.0)], alone)
    assert alone.moving(1e6, 3) == 0.0
    assert {seconds for layer in layers[:2] for seconds in layer.seconds.values()} == {0.0, 3.0}
    assert change_of(alone)(1, "replicated", "sharded") == 0.0 < change_of(CLUSTER)(1, "replicated", "sharded") == 0.5
    found = shard(layers, change_of(alone), alone.memory)
    assert (found.seconds, found.memory) == (4.0, 16 * 58)
    for gpus in (0, -1, 1.5):
        with pytest.raises(ValueError, match=f"expected one GPU or more, got gpus={gpus}"):
            replace(CLUSTER, gpus=gpus)


@pytest.mark.parametrize("wrong", [{"link": 0.0}, {"link": math.nan}, {"start": -1.0}, {"memory": math.nan}])
def test_a_cluster_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="expected link above 0, start and memory of 0 or more"):
        replace(CLUSTER, **wrong)


def test_what_was_previewed_is_not_previewed_again(tmp_path):
    path, calls = tmp_path / "previews.json", []

    def make():
        calls.append(1)
        return {"a": 1.5}

    assert kept(path, "x", make) == kept(path, "x", make) == {"a": 1.5} and len(calls) == 1
    kept(path, "y", make)
    kept(path, "x", make)
    assert len(calls) == 2


def test_previews_cut_short_are_named_and_never_written_in_place(tmp_path, monkeypatch):
    path = tmp_path / "previews.json"
    kept(path, "x", lambda: {"a": 1.5})
    whole = path.read_text()

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", killed)  # all is written, nothing is replaced
        kept(path, "y", lambda: {"a": 2.5})
    assert path.read_text() == whole and kept(path, "x", killed) == {"a": 1.5}
    for damaged in (whole[:10], "", "[1]", "\0"):
        path.write_text(damaged)
        with pytest.raises(DataError, match=r"previews.json is damaged .*: delete it"):
            kept(path, "x", killed)


def test_previews_that_others_added_meanwhile_stay(tmp_path):
    path = tmp_path / "previews.json"

    def slow():
        kept(path, "theirs", lambda: {"b": 2.0})
        return {"a": 1.0}

    kept(path, "ours", slow)
    assert json.loads(path.read_text()) == {"theirs": {"b": 2.0}, "ours": {"a": 1.0}}


@pytest.mark.slow
def test_layers_of_a_gpu_that_is_not_here():
    model = network(replace(SIZE, layers=1, untied=(), by_domain=False))
    found = layers.previewed(model, tuple(inputs(64)), "h100")
    names = {part.name for part in parts_of(model, found, 64, {})}
    assert {"transformers.0", "fusions.0", "mixing", "tasks.0", "features.categorical"} <= set(found) <= names
    assert all(0 < seconds < 1e-2 for seconds in found.values())
    assert found.get(REST, 0.0) < sum(found.values()) / 2
