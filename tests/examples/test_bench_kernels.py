"""The kernels' benchmark without a GPU: what it would run, and its operands."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from triton.tools.tensor_descriptor import TensorDescriptor

from examples import bench_kernels as bench
from loka_compile.kernels.launch import Launch, Specimen
from loka_compile.machine import kernel_list

FP8 = torch.float8_e4m3fn


def toy_specimens(arch: str, name: str = "") -> list[tuple[str, Specimen]]:
    path = Path(__file__).parents[1] / "machine" / "toy_kernels.py"
    spec = importlib.util.spec_from_file_location("toy_kernels", path)
    sys.modules["toy_kernels"] = toys = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toys)
    return [("toy", each) for each in toys.specimens(arch) if name in each.name]


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_a_dry_run_lists_what_a_gpu_would_run(target):
    names = [specimen.name for _, specimen in kernel_list.specimens(target)]
    body = bench.main(["--dry-run", "--target", target])
    assert [kernel["name"] for kernel in body["kernels"]] == names
    assert all(kernel["us"] == {} and "loka" in kernel["skipped"] for kernel in body["kernels"])


def test_a_dry_run_models_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench.kernel_list, "specimens", toy_specimens)
    out = tmp_path / "out.json"
    body = bench.main(["--dry-run", "--kernel", "fp8", "--json", str(out)])
    assert json.loads(out.read_text()) == json.loads(json.dumps(body))
    fp8 = next(kernel for kernel in body["kernels"] if kernel["name"] == "fp8")
    moved = 65536 * 512 + 512 * 512 + 65536 * 512 * 2 + 65536 * 4
    assert fp8["modelled_us"] == pytest.approx(moved / (3.35e12 * 0.92) * 1e6 + 2)
    assert fp8["unfused_us"] == pytest.approx((1e8 + 3e8) / (3.35e12 * 0.92) * 1e6 + 4)
    printed = capsys.readouterr().out
    assert "unfused, modelled" in printed and f"{fp8['modelled_us']:.1f}" in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(SystemExit, match="no GPU here; --dry-run"):
        bench.main([])


def test_an_unknown_chip_is_named():
    with pytest.raises(SystemExit, match="got 'sm_9'; did you mean 'sm_90'"):
        bench.main(["--dry-run", "--target", "sm_9"])


def test_operands_are_made_as_the_launch_has_them():
    x = torch.empty(6, 8, dtype=torch.bfloat16, device="meta")
    args = {
        "x": x,
        "again": x,
        "transposed": torch.empty(8, 6, dtype=FP8, device="meta").t(),
        "block": TensorDescriptor.from_tensor(torch.empty(8, 16, device="meta"), [4, 8]),
        "cu_seqlens": torch.empty(4, dtype=torch.int32, device="meta"),
        "locks": torch.empty(3, dtype=torch.int32, device="meta"),
        "q": torch.empty(100, dtype=torch.int8, device="meta"),
        "none": None,
        "n": 5,
    }
    made = bench.materialize(Launch(None, (1,), args, {"BLOCK": 4}), "cpu")
    assert made.args["x"] is made.args["again"]
    for name in ("x", "transposed", "locks", "q"):
        assert made.args[name].device.type == "cpu"
        for of in (torch.Tensor.size, torch.Tensor.stride):
            assert of(made.args[name]) == of(args[name])
        assert made.args[name].dtype == args[name].dtype
    assert made.args["x"].float().std() > 0.5 and made.args["transposed"].float().std() > 0.5
    assert made.args["cu_seqlens"].tolist() == [0, 3, 5, 8]  # of the 8 rows that the longest operand has
    assert made.args["locks"].tolist() == [0, 0, 0]
    assert made.args["block"].block_shape == [4, 8] and made.args["block"].base.device.type == "cpu"
    assert (made.args["none"], made.args["n"], made.constants) == (None, 5, {"BLOCK": 4})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_times_are_those_of_the_work():
    small, large = (torch.randn(n, n, device="cuda") for n in (64, 8192))
    us = bench.timed({"small": lambda: small @ small, "large": lambda: large @ large}, rounds=5)
    assert 0 < us["small"] < us["large"]
