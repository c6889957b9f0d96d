"""The bench: what of it was run is kept, whatever stopped it and whatever it was asked to leave out."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from examples.lattice.ktap import bench
from examples.lattice.ktap.record import Knowledge
from tests.examples.lattice.ktap.test_movielens import few


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


def test_constant_soft_labels_say_nothing_about_a_pair():
    found = few()
    hit = torch.rand(len(found.ids) - found.first) < 0.5
    given = Knowledge(torch.randn(len(hit), 3) * hit[:, None], torch.randn(len(hit), 2) * hit[:, None], hit)
    flat = bench.constant(found, given)
    assert torch.equal(flat.hit, hit) and torch.equal(flat.embedding, given.embedding)
    rates = found.rows.labels[: found.first].mean(dim=0)
    torch.testing.assert_close(flat.logits[hit].sigmoid(), rates.expand(int(hit.sum()), 2))
    assert not flat.logits[~hit].any()


def scores(*each):
    return [{"auc": auc, "ne": ne} for auc, ne in each]


def test_transfer_and_ratio_are_told_in_both_measures_and_by_seed():
    runs = {
        "no teacher": scores((0.60, 0.95), (0.60, 0.95)),
        "the teacher": scores((0.70, 0.85), (0.70, 0.85)),
        "constant soft labels": scores((0.58, 0.95), (0.58, 0.94)),
        "soft labels alone": scores((0.62, 0.93), (0.64, 0.96)),  # in NE the second seed's labels lose
        "KTAP": scores((0.66, 0.92), (0.66, 0.92)),
    }
    assert bench.transfer(runs, "auc")["KTAP"] == pytest.approx(0.6)
    assert bench.transfer(runs, "ne")["soft labels alone"] == pytest.approx(0.05)
    assert bench.ratios(runs, "auc") == pytest.approx([3.0, 1.5])
    assert bench.ratios(runs, "ne") == pytest.approx([1.5, -3.0])
    assert bench.said("auc", runs).endswith(
        "larger in 2 seeds of 2, 1.3 times or more in 2 of the 2 in which labels gain"
    )
    over_constant = bench.said("auc", runs, bench.CONSTANT)
    assert "upon constant soft labels, over that of soft labels alone: 1.60; by seed 1.33 to 2.00" in over_constant
    in_ne = bench.said("ne", runs)
    assert "by seed -3.00 to 1.50, median -0.75; larger in 2 seeds of 2, 1.3 times or more in 1 of the 1" in in_ne
