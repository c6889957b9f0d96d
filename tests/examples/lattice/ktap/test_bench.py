"""The bench: what of it was run is kept, whatever stopped it and whatever it was asked to leave out."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from examples.lattice.ktap import bench


@pytest.fixture
def asked(monkeypatch):
    """A bench whose figures cost nothing; how often each part of each seed is asked for."""
    asked = Counter()

    def arms(seed, quick):
        asked["arms", seed] += 1
        names = [bench.TEACHER, *bench.ARMS]
        return {arm: {"auc": 0.7 + place / 100, "ne": 0.9 - place / 100} for place, arm in enumerate(names)}

    def points(seed, quick):
        asked["curve", seed] += 1
        return {"6 h, 50% of pairs": {"auc": 0.7, "ne": 0.9, "hits": 0.4}}

    monkeypatch.setattr(bench, "arms", arms)
    monkeypatch.setattr(bench, "points", points)
    return asked


def of(path):
    return json.loads(path.read_text())["runs"]


def test_a_curve_that_was_left_out_is_run_when_it_is_asked_for(asked, tmp_path, capsys):
    path = tmp_path / "r.json"
    bench.main(["--seeds", "1", "--no-curve", "--json", str(path)])
    assert "curve" not in of(path)
    bench.main(["--seeds", "2", "--json", str(path)])
    assert set(of(path)["curve"]) == {"1", "2"} and all(of(path)["curve"].values())
    bench.main(["--seeds", "3", "--no-curve", "--json", str(path)])
    bench.main(["--seeds", "3", "--json", str(path)])
    assert set(asked.values()) == {1} and len(asked) == 6


def test_a_bench_killed_between_arms_and_curve_goes_on(asked, tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    ours = bench.points

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "points", killed)
    with pytest.raises(KeyboardInterrupt):
        bench.main(["--seeds", "1", "--json", str(path)])
    monkeypatch.setattr(bench, "points", ours)
    bench.main(["--seeds", "1", "--json", str(path)])
    assert of(path)["curve"]["1"] and asked == {("arms", 1): 1, ("curve", 1): 1}


def test_a_plot_without_a_curve_is_refused(asked, tmp_path, capsys):
    with pytest.raises(SystemExit):
        bench.main(["--no-curve", "--plot", str(tmp_path / "r.png")])
    assert "give one of the two" in capsys.readouterr().err and not asked
