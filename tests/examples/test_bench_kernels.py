"""The kernels' benchmark without a GPU: what it would run, its operands, and that its rivals do the work they claim."""

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


def error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize("tensorwise", [False, True])
def test_rivals_multiply(tensorwise):
    """The eager forms on the CPU: Inductor's own code is not what is tested here."""
    torch.manual_seed(0)
    x, w = torch.randn(32, 64), torch.randn(48, 64)
    q, scale = bench.quantized(x, FP8, tensorwise)
    assert scale.shape == ((1, 1) if tensorwise else (32, 1))
    assert error(q.float() * scale, x) < 0.03
    p, other = bench.quantized(w, FP8, tensorwise)
    out = torch._scaled_mm(q, p.t(), scale, other.t(), out_dtype=torch.bfloat16)
    assert error(out, x @ w.t()) < 0.05


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("name", ["_scaled_mm", "Inductor bf16"])
def test_gemm_rivals_run(norm, name):
    makers = bench.gemm_rivals(32, 48, 64, FP8, norm, tensorwise=False)
    name = f"{name}, then Inductor" if norm and name == "_scaled_mm" else name
    with torch.compiler.set_stance("force_eager"):
        out = makers[name]("cpu")()
    if not norm:
        assert out.shape == (32, 48) and out.dtype == torch.bfloat16
        return
    q, scale = out
    assert (q.shape, q.dtype, scale.shape) == ((32, 48), FP8, (32, 1))
    # After RMSNorm and ReLU about half the values are zero, and their mean square is about one half.
    values = q.float() * scale
    assert 0.4 < (values == 0).float().mean() < 0.6 and 0.4 < values.square().mean() < 0.6


def test_other_rivals_run():
    with torch.compiler.set_stance("force_eager"):
        q, scale = bench.quantize_rivals(8, 64, FP8, norm=False)["Inductor"]("cpu")()
        of_grad = bench.backward_rivals(8, 64, FP8)["Inductor"]("cpu")()
        out = bench.interaction_rivals(4, 6, 16, 8)["Inductor bf16"]("cpu")()
        attended = [make("cpu")() for make in bench.attention_rivals(2, 3, 5, 7, 16).values()]
    assert (q.shape, scale.shape, out.shape) == ((8, 64), (8, 1), (4, 48))
    assert [each.shape for each in of_grad] == [(8, 64), (8, 1)]
    assert [each.shape for each in attended] == [(2, 3, 5, 16)] * 2
    assert float(out.float().square().mean()) == pytest.approx(1, rel=0.05)


def test_rivals_are_found_by_module_and_sizes():
    found = bench.rivals("triton_gemm", "scaled_gemm rowwise 65536x512x512", "sm_90")
    assert list(found)[:2] == ["_scaled_mm", "Inductor bf16"]
    assert "_scaled_mm, then Inductor" in bench.rivals(
        "gemm_norm_specimens", "gemm_norm rms relu fp8 to fp8 4096x512x512", "sm_90"
    )
    assert list(bench.rivals("quantize", "quantize row 65536x512", "gfx942")) == ["Inductor"]
    assert list(bench.rivals("fm", "fm rms 1024x48x224x448", "sm_90")) == ["Inductor bf16"]
    assert len(bench.rivals("gdpa_kernel", "gdpa gelu 1024x2x1024x128x128", "sm_90")) == 2
    assert bench.rivals("gdpa_kernel", "gdpa gelu jagged 1024x2x1024x128x128", "sm_90") == {}
    assert bench.rivals("gemm_norm_specimens", "gemm_norm rms silu fp8 to fp8 4096x512x512", "sm_90") == {}
    backward = "norm_quantize_backward rms relu float8_e4m3fn 65536x512"
    assert list(bench.rivals("norm_quantize_backward", backward, "sm_90")) == ["Inductor"]
    assert bench.rivals("norm_quantize_backward", backward + " copy", "sm_90") == {}
    assert bench.rivals("norm_quantize_backward", backward.replace("relu", "silu"), "sm_90") == {}
    assert bench.rivals("quantize", "no sizes", "sm_90") == {}
    for other in ("triton_gemm rowwise 24 of 1024x256x192", "triton_gemm rowwise sum of parts 512x512x65536"):
        assert bench.rivals("triton_gemm", other, "sm_90") == {}
    assert bench.rivals("triton_quantize", "triton_quantize tile float8_e4m3fn 65536x512", "sm_90") == {}
    assert "_scaled_mm" in bench.rivals("triton_gemm", "triton_gemm tensorwise 4096x512x512", "sm_90")
    assert bench.missing("fbgemm_gpu f8f8bf16_rowwise") in ("", "fbgemm_gpu is not installed")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_times_are_those_of_the_work():
    small, large = (torch.randn(n, n, device="cuda") for n in (64, 8192))
    us = bench.timed({"small": lambda: small @ small, "large": lambda: large @ large}, rounds=5)
    assert 0 < us["small"] < us["large"]
