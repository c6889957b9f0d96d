"""The benchmarks run and write what they promise; what they measure is for people to read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def bench(tmp_path, name, *options):
    result = tmp_path / "result.json"
    subprocess.run([sys.executable, EXAMPLES / name, *options, "--json", result], check=True, capture_output=True)
    return json.loads(result.read_text())


@pytest.mark.slow
def test_compile_time(tmp_path):
    result = bench(tmp_path, "bench_compile.py", "--rounds", "1")
    assert set(result["seconds"]) == {"inductor", "loka"}


@pytest.mark.slow
def test_training_under_a_gpu_plan(tmp_path):
    result = bench(tmp_path, "bench_training.py", "--rows", "12288", "--seeds", "1")
    assert result["lowered"] == result["sites"]
    assert min(result["gradient_sqnr_db"].values()) > 20


@pytest.mark.slow
def test_mods(tmp_path):
    result = bench(tmp_path, "bench_mods.py", "--quick", "--seeds", "1", "--rounds", "2")
    variants = {"as it is", "no_bias", "block_norm", "hard_swish", "all three"}
    assert set(result["ne"]) == set(result["latency"]["loka"]) == set(result["latency"]["inductor"]) == variants


@pytest.mark.slow
def test_attention_and_factorization_machine(tmp_path):
    result = bench(tmp_path, "bench_gdpa.py", "--quick", "--rounds", "2")
    assert len(result["cases"]) == 6
    assert all(case["speedup"] > 0 and case["plain_ms"] > 0 for case in result["cases"].values())


@pytest.mark.slow
def test_cpu_paths_of_ops(tmp_path):
    result = bench(tmp_path, "bench_cpu_ops.py", "--quick", "--rounds", "2")
    ops = (
        "quantize rows",
        "norm ",
        "norm_quantize ",
        "norm_quantize_backward",
        "gemm_norm",
        "frozen_gemm ",
        "frozen_gemm_norm",
        "gdpa",
        "pffn",
        "fm",
    )
    assert all(any(case.startswith(op) for case in result["cases"]) for op in ops)
    assert all(case["speedup"] > 0 and case["plain_ms"] > 0 for case in result["cases"].values())


@pytest.mark.slow
def test_serving(tmp_path):
    result = bench(tmp_path, "bench_serving.py", "--quick", "--rounds", "2")
    assert {"Inductor", "loka, exact passes off", "loka, exact passes on"} < set(result["variants"])
    assert all(row["error"] < 1e-5 for name, row in result["variants"].items() if name != "loka, all it has")


@pytest.mark.slow
def test_preview(tmp_path):
    result = bench(tmp_path, "bench_preview.py", "--quick")
    [row] = result["rows"]
    assert row["kernels"]["inductor"] == 8 and not row["errors"]
    assert result["geometric_means"]["inference"]["h100"] == row["speedup"]["loka"]


@pytest.mark.slow
def test_kunlun(tmp_path):
    result = bench(
        tmp_path,
        "kunlun/bench.py",
        "--quick",
        "--batch",
        "4",
        "--seeds",
        "1",
        "--rounds",
        "2",
        "--only",
        "CompSkip",
        "window",
    )
    assert set(result["variants"]) == {"as it is", "CompSkip", "window"}
    assert all(result["variants"]["CompSkip"][kind]["flops"] < -0.2 for kind in ("inference", "training"))


@pytest.mark.slow
def test_kunlun_training(tmp_path):
    [run] = bench(tmp_path, "kunlun/train.py", "--quick", "--compskip")["runs"]
    assert 0.5 < run["ne"] < 1.5


@pytest.mark.slow
def test_kunlun_scaling(tmp_path):
    result = bench(tmp_path, "kunlun/scaling.py", "--quick", "--sizes", "tiny", "--plot", str(tmp_path / "law.png"))
    assert set(result["points"]) == {"tiny", "tiny, CompSkip"}
    assert (tmp_path / "law.png").exists()


@pytest.mark.slow
def test_first_call(tmp_path):
    result = bench(tmp_path, "bench_first_call.py", "--models", "tower", "--rounds", "1", "--batch", "64")
    ways = result["models"]["tower"]
    assert set(ways) == {"inductor", "profile", "online"}
    assert ways["inductor"]["ratio"] == ways["inductor"]["cpu_ratio"] == 1 and ways["online"]["cpu"] > 0
    assert ways["profile"]["all"][0]["calls"] == 1 < ways["online"]["all"][0]["calls"] < 20  # it stopped at a plan
    assert all(len(ways[way]["all"][0]["chosen"]) == 3 for way in ("profile", "online"))


@pytest.mark.slow
def test_other_engines(tmp_path):
    result = bench(tmp_path, "bench_dispatch.py", "--quick", "--models", "dlrm", "--no-uniform", "--threads", "1")
    variants = result["models"]["dlrm"]
    assert {"inductor", "eager", "loka", "PyTorch dynamic, x86"} < set(variants) and "bf16" not in variants
    assert all(
        (variant["error"] is not None) != variant["skipped"].startswith("not installed")
        for variant in variants.values()
    )
