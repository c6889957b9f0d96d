"""A rehearsal of the demo on a tiny model: everything is written, and what is written can be read back."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

import loka_compile as loka
from examples import quickstart


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("quickstart")
    return out, quickstart.main(["--quick", "--out", str(out)])


def test_results(run):
    out, results = run
    written = json.loads((out / "results.json").read_text())
    assert written == results
    keys = "auc_eager auc_loka logloss_eager logloss_loka ms_eager ms_inductor ms_loka sites lowered_sites"
    assert set(keys.split()) <= set(written)
    assert written["sites"] == 15 and written["ms_loka"] > 0
    assert abs(written["auc_change"]) < 0.05
    assert written["wanted_speedup"] in (quickstart.MIN_SPEEDUP, quickstart.NEVER_SLOWER)


def test_what_is_wanted_is_what_the_cpu_can_do(run):
    _, results = run
    for gemms, wanted in ((8.5, "1.5x"), (1.1, "0.98x")):
        shown = Console(file=io.StringIO(), width=200, record=True)
        limit = float(wanted.removesuffix("x"))
        shown.print(quickstart.verdict(results | {"gemm_speedup": gemms, "wanted_speedup": limit}))
        text = shown.export_text()
        assert f">= {wanted}" in text and f"make the GEMMs {gemms:.2f}x as fast" in text
        assert ("too little to ask for" in text) is (gemms < quickstart.FAST)
        assert results["hardware"] and results["hardware"] in " ".join(text.split())
        assert sum(results["recipes"].values()) == results["lowered_sites"] and "reasons above" in text


def test_plans_and_profile_load(run):
    out, _ = run
    profile = loka.load_profile(out / "profile.safetensors")
    for name, target in (("plan.json", "cpu"), ("plan_h100.json", "h100")):
        plan = loka.load_plan(out / name)
        assert plan.target == target
        assert set(plan.decisions) == set(profile.sites)


def test_graphs_and_plot(run):
    out, _ = run
    for target in ("cpu", "h100"):
        (folder,) = (out / "graphs" / target).iterdir()
        assert {"before.py", "after.py"} <= {path.name for path in folder.iterdir()}
        assert "torch.ops.aten.addmm" in (folder / "before.py").read_text()
    assert (out / "error_against_speed.png").read_bytes().startswith(b"\x89PNG")
