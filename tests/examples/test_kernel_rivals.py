"""Rivals do the work they claim, and are found by a launch's module and sizes."""

from __future__ import annotations

import pytest
import torch

from examples import kernel_rivals

FP8 = torch.float8_e4m3fn


def error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize("tensorwise", [False, True])
def test_rivals_multiply(tensorwise):
    """The eager forms on the CPU: Inductor's own code is not what is tested here."""
    torch.manual_seed(0)
    x, w = torch.randn(32, 64), torch.randn(48, 64)
    q, scale = kernel_rivals.quantized(x, FP8, tensorwise)
    assert scale.shape == ((1, 1) if tensorwise else (32, 1))
    assert error(q.float() * scale, x) < 0.03
    p, other = kernel_rivals.quantized(w, FP8, tensorwise)
    out = torch._scaled_mm(q, p.t(), scale, other.t(), out_dtype=torch.bfloat16)
    assert error(out, x @ w.t()) < 0.05


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("name", ["_scaled_mm", "Inductor bf16"])
def test_gemm_rivals_run(norm, name):
    makers = kernel_rivals.gemm_rivals(32, 48, 64, FP8, norm, tensorwise=False)
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
        q, scale = kernel_rivals.quantize_rivals(8, 64, FP8, norm=False)["Inductor"]("cpu")()
        of_grad = kernel_rivals.backward_rivals(8, 64, FP8)["Inductor"]("cpu")()
        out = kernel_rivals.interaction_rivals(4, 6, 16, 8)["Inductor bf16"]("cpu")()
        attended = [make("cpu")() for make in kernel_rivals.attention_rivals(2, 3, 5, 7, 16).values()]
    assert (q.shape, scale.shape, out.shape) == ((8, 64), (8, 1), (4, 48))
    assert [each.shape for each in of_grad] == [(8, 64), (8, 1)]
    assert [each.shape for each in attended] == [(2, 3, 5, 16)] * 2
    assert float(out.float().square().mean()) == pytest.approx(1, rel=0.05)


def test_rivals_are_found_by_module_and_sizes():
    found = kernel_rivals.rivals("triton_gemm", "scaled_gemm rowwise 65536x512x512", "sm_90")
    assert list(found)[:2] == ["_scaled_mm", "Inductor bf16"]
    assert "_scaled_mm, then Inductor" in kernel_rivals.rivals(
        "gemm_norm_specimens", "gemm_norm rms relu fp8 to fp8 4096x512x512", "sm_90"
    )
    assert list(kernel_rivals.rivals("quantize", "quantize row 65536x512", "gfx942")) == ["Inductor"]
    assert list(kernel_rivals.rivals("fm", "fm rms 1024x48x224x448", "sm_90")) == ["Inductor bf16"]
    assert len(kernel_rivals.rivals("gdpa_kernel", "gdpa gelu 1024x2x1024x128x128", "sm_90")) == 2
    assert kernel_rivals.rivals("gdpa_kernel", "gdpa gelu jagged 1024x2x1024x128x128", "sm_90") == {}
    assert kernel_rivals.rivals("gemm_norm_specimens", "gemm_norm rms silu fp8 to fp8 4096x512x512", "sm_90") == {}
    backward = "norm_quantize_backward rms relu float8_e4m3fn 65536x512"
    assert list(kernel_rivals.rivals("norm_quantize_backward", backward, "sm_90")) == ["Inductor"]
    assert kernel_rivals.rivals("norm_quantize_backward", backward + " copy", "sm_90") == {}
    assert kernel_rivals.rivals("norm_quantize_backward", backward.replace("relu", "silu"), "sm_90") == {}
    assert kernel_rivals.rivals("quantize", "no sizes", "sm_90") == {}
    for other in ("triton_gemm rowwise 24 of 1024x256x192", "triton_gemm rowwise sum of parts 512x512x65536"):
        assert kernel_rivals.rivals("triton_gemm", other, "sm_90") == {}
    assert kernel_rivals.rivals("triton_quantize", "triton_quantize tile float8_e4m3fn 65536x512", "sm_90") == {}
    assert "_scaled_mm" in kernel_rivals.rivals("triton_gemm", "triton_gemm tensorwise 4096x512x512", "sm_90")
    assert kernel_rivals.missing("fbgemm_gpu f8f8bf16_rowwise") in ("", "fbgemm_gpu is not installed")
