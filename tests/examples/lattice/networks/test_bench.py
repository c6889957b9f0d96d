"""The bench's arms on few ratings, its table and plot, and that a run goes on seed by seed."""

import pytest
import torch
from rich.console import Console

from examples.lattice.networks import bench, fit, samples
from examples.lattice.networks.baselines import BODIES


@pytest.mark.slow
def test_all_models_are_trained_once_a_seed(tmp_path, monkeypatch):
    asked = [
        "--quick",
        "--problems",
        "movielens",
        "--json",
        str(tmp_path / "x.json"),
        "--plot",
        str(tmp_path / "x.png"),
    ]
    bench.main([*asked, "--seeds", "1"])
    kept = bench.Kept(tmp_path / "x.json", bench.settings(True))
    runs = kept.runs("movielens", 1)
    assert list(runs) == [*BODIES, bench.LATTICE, *bench.WITHOUT, bench.WITH]
    costs = {name: of[0]["flops"] for name, of in runs.items()}
    assert all(0.9 * costs[bench.LATTICE] < costs[name] <= costs[bench.LATTICE] for name in BODIES)
    assert costs["without QK-norm"] == costs[bench.LATTICE] > costs["without extended storage"]
    few = samples.clothing().few(bench.FEW["clothing"])  # a rehearsal judges some portfolios of it
    assert len(fit.judge(few, few.test, torch.randn(len(few.test), 3))) >= 3
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    with Console(record=True, width=140) as console:
        console.print(bench.table("movielens", runs))
    assert "0 of 1" in console.export_text() or "1 of 1" in console.export_text()
    monkeypatch.setattr(bench, "arms", lambda *_: pytest.fail("seed 1 was run again"))
    bench.main([*asked, "--seeds", "1"])
