"""The comparison rehearses."""

from __future__ import annotations

import json

import pytest

from examples.lattice.data import DataError
from examples.lattice.kept import Kept
from examples.lattice.partitioner import bench
from examples.lattice.partitioner.describe import Weights
from examples.lattice.partitioner.groups import Key


def test_portfolios_are_dealt_to_groups_of_even_size():
    keys = [Key(d, t) for d in range(3) for t in range(3)]
    found = bench.dealt(keys, 4, 0)
    assert sorted(i for group in found for i in group) == list(range(9)) and {len(group) for group in found} == {2, 3}
    assert found != bench.dealt(keys, 4, 1)


def test_a_domain_is_the_mean_of_its_tasks():
    assert bench.by_domain({Key(0, 0): 0.6, Key(0, 1): 0.8, Key(1, 0): 0.5}) == {0: pytest.approx(0.7), 1: 0.5}


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (bench, "DELAYS", {"clothing": (0.0,)}),
        (bench, "WEIGHTS", Weights(timing=0.0)),
        *(
            (bench.groups, name, 3)
            for name in ("WIDTH", "BATCH", "RATE", "NEWTON", "TRAININGS", "MOMENTS", "FOLDS", "ROWS")
        ),
        (bench.describe, "SURE", 3.0),
        (bench.data, "WORDS", 3),
        (bench.data, "SELDOM", 3),
    ],
)
def test_figures_of_other_settings_are_not_taken_for_its_own(module, name, value, tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    Kept(path, bench.settings(False)).write()
    Kept(path, bench.settings(False))
    monkeypatch.setattr(module, name, value)
    with pytest.raises(DataError, match="other settings"):
        Kept(path, bench.settings(False))


@pytest.mark.slow
def test_it_rehearses(tmp_path):
    bench.main(["--quick", "--seeds", "1", "--json", str(tmp_path / "r.json")])
    found = json.loads((tmp_path / "r.json").read_text())
    for name in ("movielens", "clothing"):
        assert len(found["runs"][name]["1"]) == 5 and found["more"][name]["explain"]
