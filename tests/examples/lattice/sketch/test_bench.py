"""The bench keeps what it found by all that it depends on."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("optuna")
from examples.lattice.data import UNKNOWN, DataError
from examples.lattice.networks import samples
from examples.lattice.pipeline import stages
from examples.lattice.sketch import bench
from examples.lattice.sketch.search import Bounds, Cost, Found, NothingFits
from tests.examples.lattice.networks.small import SIZE, network


@pytest.fixture(scope="module")
def movielens():
    return samples.movielens()


def test_a_preview_is_of_all_that_it_depends_on():
    model, options = network(), SimpleNamespace(target="h100", batch=64)
    key = bench.key_of(model, {"width": 8, "layers": 1}, options)
    assert key == bench.key_of(model, {"layers": 1, "width": 8}, options)  # as a file of trials gives them back
    others = [
        bench.key_of(model, {"width": 16, "layers": 1}, options),
        bench.key_of(model, {"width": 8, "layers": 1}, SimpleNamespace(target="b200", batch=64)),
        bench.key_of(model, {"width": 8, "layers": 1}, SimpleNamespace(target="h100", batch=32)),
        bench.key_of(network(replace(SIZE, layers=1)), {"width": 8, "layers": 1}, options),
    ]
    assert len({key, *others}) == 5


def test_trials_of_another_bench_are_refused(tmp_path, monkeypatch, movielens):
    """A rehearsal, other data, another target and other GPUs in the folder of the one before: untrained networks."""
    monkeypatch.setattr(bench, "previewed", lambda *_: {"features.categorical": 1e-5})
    monkeypatch.setattr(bench.fit, "train", lambda *_: [])
    monkeypatch.setattr(bench.samples, "movielens", lambda: movielens)
    args = ["--trials", "1", "--rows", "100", "--out", str(tmp_path)]
    first = bench.main(["--quick", *args])
    others = {
        r"quick is true there, false here; samples is 4000 there, 100000 here": [],
        r'target is "h100" there, "b200" here': ["--quick", "--target", "b200"],
        r"batch is 4096 there, 8 here": ["--quick", "--batch", "8"],
        r"rows is 100 there, 50 here": ["--quick", "--rows", "50"],
        r"cluster.gpus is 8 there, 2 here": ["--quick", "--gpus", "2"],
        r"cluster.memory is 1000000 there, 2000000 here": ["--quick", "--memory", "2000000"],
    }
    for message, more in others.items():
        with pytest.raises(DataError, match=rf"sketch.db holds trials of other settings \({message}\)"):
            bench.main([*args, *more])
    with pytest.raises(NothingFits, match="none of 1 trials"):  # bounds may change, and are those of today
        bench.main(["--quick", *args, "--latency", "1e-9"])
    assert bench.main(["--quick", *args]) == first
    assert json.loads((tmp_path / "sketch.json").read_text()) == json.loads(json.dumps(first))


def test_the_pipeline_says_what_its_trials_are_of(tmp_path, monkeypatch, movielens):
    said = []

    def search(*_, **settings):
        said.append(json.dumps(settings["said"]))
        values = {"width": 8, "layers": 1, "tokens": 4, "k": 4, "hidden": 32, "keys": 8}
        return Found(values, 0.7, Cost(1.0, 0.1), 0.7, 1, 1)

    monkeypatch.setattr(stages, "search", search)
    found = movielens.last(400)

    def go(found=found, untied=(0, 0, 0), seed=1):
        stages.sketched(found, [*untied], 1, Bounds(0.0, 1.0), tmp_path / "sketch.db", seed, lambda losses, *_: losses)

    fields = found.fields[1:]
    for _ in range(2):
        go()
    for other in (found.last(300), replace(found, cut=200), replace(found, name="clothing"), found.with_fields(fields)):
        go(other)
    go(found.with_fields(found.fields, bag=False))
    go(untied=(0, 1, 0))
    go(seed=2)
    assert said[0] == said[1] and len(set(said)) == len(said) - 1 == 8


def test_held_rows_have_no_ids_that_were_not_learned(tmp_path, monkeypatch, movielens):
    """A user or film that is new in them would be a random vector, and its AUC that of another task than the test's."""
    judged = []

    def judge(found, rows, logits):
        judged.append((found.inputs, rows))
        return {"all": {"auc": 0.5}}

    monkeypatch.setattr(bench, "previewed", lambda *_: {"features.categorical": 1e-5})
    monkeypatch.setattr(bench.fit, "train", lambda *_: [])
    monkeypatch.setattr(bench.fit, "judge", judge)
    monkeypatch.setattr(bench.samples, "movielens", lambda: movielens)
    bench.main(["--quick", "--trials", "1", "--rows", "100", "--out", str(tmp_path)])
    [(inputs, held)] = judged
    early = held[0] - 100 + torch.arange(100)
    for now, learned in zip(inputs.ids[held].T, inputs.ids[early].T, strict=True):
        assert torch.isin(now[now != UNKNOWN], learned).all()
    assert (inputs.ids[held] == UNKNOWN).any()
