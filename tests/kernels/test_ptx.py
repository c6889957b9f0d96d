"""Arithmetic of epilogues beside float64: as it is written out, and what an approximate tanh does to a result in FP8.

The assembly itself is only compiled here; on a GPU test_gemm_norm.py runs it.
"""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from loka_compile.kernels import ptx
from loka_compile.kernels.quantize.quantize import dequantize, quantize

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TANH = 2.0**-11
"""How far `tanh.approx.f32` may be from a tanh, by its size (PTX ISA)."""


@triton.jit
def swish_kernel(x, out, PTX: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, N)[None, None, :]
    tl.store(out + at, ptx.swish_of_twice(tl.load(x + at) * 0.5, PTX, PTX >= ptx.PACKED))


def test_a_swish_by_its_tanh():
    x = torch.cat([torch.linspace(-20, 20, 2045), torch.tensor([1e4, -1e4, float("nan")])]).to(DEVICE)
    out = torch.full_like(x, 99)
    level = 0 if DEVICE == "cpu" else ptx.level("sm_%d%d" % torch.cuda.get_device_capability())  # noqa: UP031
    swish_kernel[(1,)](x, out, level, 2048)
    exact = x.double() * torch.sigmoid(x.double())
    assert out[-1].isnan()
    error = ((out.double() - exact).abs() / (x.double().abs() / 2 + 1e-30))[:-1].max()
    assert error <= (1.01 * TANH if level else 4e-7)


def test_what_the_tanh_may_lack_does_not_show_in_fp8():
    """Rows of a norm's result, the tanh off by all it may be, either way: the error of the result in FP8 stays what FP8
    makes it, to 0.1 %."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 512, generator=generator, dtype=torch.float64)
    signs = torch.randint(0, 2, x.shape, generator=generator) * 2 - 1
    exact = x * torch.sigmoid(x)
    off = x / 2 + x / 2 * torch.tanh(x / 2) * (1 + TANH * signs)

    def error(y):
        return (dequantize(*quantize(y.float(), torch.float8_e4m3fn, "row", -1)) - exact).square().mean().sqrt()

    assert float(error(off)) == pytest.approx(float(error(exact)), rel=1e-3)


@pytest.mark.parametrize(("arch", "expected"), [("sm_90", 90), ("sm_100", 100), ("gfx942", 0)])
def test_levels(arch, expected):
    assert ptx.level(arch) == (0 if triton.knobs.runtime.interpret else expected)
