"""The comparison rehearses; what it measures is for people to read."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from examples.lattice.data import DataError
from examples.lattice.filter import bench
from examples.lattice.filter.importance import columns_of, permutation_importances
from examples.lattice.kept import Kept


@pytest.mark.slow
def test_it_rehearses(tmp_path):
    bench.main(["--quick", "--seeds", "1", "--json", str(tmp_path / "r.json"), "--plot", str(tmp_path / "r.png")])
    found = json.loads((tmp_path / "r.json").read_text())
    for name in ("clothing", "bio"):
        assert len(found["runs"][name]["1"]) == 1 + 3 * 8 and (tmp_path / "r.png").exists()


def test_the_task_that_lost_most_counts():
    assert bench.lost([[0.7, 0.6], [0.8, 0.8]], [[0.75, 0.9], [0.8, 0.7]]) == pytest.approx([0.3, 0.0])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORDS", 500),
        ("HIDDEN", 16),
        ("BATCH", 128),
        ("RATE", 1e-3),
        ("BUDGETS", {"clothing": (1,), "bio": (1,)}),
        ("EPOCHS", {"clothing": 1, "bio": 1}),
    ],
)
def test_kept_figures_of_other_settings_are_refused(tmp_path, monkeypatch, name, value):
    Kept(tmp_path / "r.json", bench.settings(quick=False)).write()
    Kept(tmp_path / "r.json", bench.settings(quick=False))
    monkeypatch.setattr(bench, name, value)
    with pytest.raises(DataError, match="holds figures of other settings"):
        Kept(tmp_path / "r.json", bench.settings(quick=False))


def test_a_small_task_keeps_its_feature_by_fronts_and_loses_it_by_the_sum():
    """Two tasks of large importances that share features, one of small that needs its own."""
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(1500, 6, generator=generator)
    strong, weak = dense[:, :4].sum(1), dense[:, 5]
    chances = torch.stack([2 * strong, 2 * strong, 0.7 * weak], dim=1).sigmoid()
    labels = (torch.rand(1500, 3, generator=generator) < chances).float()
    parts = tuple((dense[part], labels[part]) for part in (slice(0, 900), slice(900, 1200), slice(1200, 1500)))
    problem = bench.Problem("made up", tuple("abcdef"), ("x", "y", "z"), *parts, torch.zeros(300))
    model = bench.fit(problem, torch.arange(6), 0, 20)
    found = permutation_importances(model, problem.held[:1], problem.held[1], columns_of(problem.names, 0))
    kept = bench.ways(found, 4, 0, problem.tasks)
    assert 5 in kept["Pareto fronts, sigma"].tolist() and 5 not in kept["weighted sum"].tolist()
    judged = {}
    for way in ("Pareto fronts, sigma", "weighted sum"):
        columns = torch.from_numpy(np.sort(kept[way]))
        judged[way] = bench.judge(problem, bench.fit(problem, columns, 0, 20), columns)
    assert min(judged["Pareto fronts, sigma"]) > min(judged["weighted sum"]) + 0.05
