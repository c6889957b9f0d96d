"""loka::gemm_norm as an op: schema, gradients and outputs, arguments that are refused, and what its launches move."""

from __future__ import annotations

import pytest
import torch

from loka_compile.kernels.gemm_norm.epilogue import GemmNorm
from loka_compile.kernels.gemm_norm.gemm_norm import gemm_norm, reference
from loka_compile.kernels.gemm_norm.gemm_norm_specimens import specimens
from loka_compile.spec.chips import CHIPS
from tests.kernels.gemm_norm.test_gemm_norm import DEVICE, E4M3, E5M2, EPS, TOP, draw


@pytest.mark.parametrize(("of", "dtype"), [(E4M3, E4M3), (torch.bfloat16, torch.bfloat16), (torch.float32, E5M2)])
@pytest.mark.parametrize(
    ("norm", "block", "save"), [("none", 0, False), ("rms", 16, True), ("layer", 0, True), ("lazy", 0, True)]
)
def test_opcheck(of, dtype, norm, block, save):
    operands = draw(6, 48, 32, 0, of, 8, "bw" if norm == "layer" else "brw")
    scale = torch.ones(1, device=DEVICE) if norm == "lazy" and dtype in TOP else None
    args = *operands, scale, norm, block, "relu", dtype, EPS, save
    tests = "test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"
    tests = tests[1:] if of in TOP else tests  # torch's test of schemas multiplies operands, which CPUs cannot in FP8
    torch.library.opcheck(torch.ops.loka.gemm_norm.default, args, test_utils=tests)


def test_outputs_share_no_memory():
    a, b = torch.randn(4, 8, device=DEVICE), torch.randn(6, 8, device=DEVICE)
    out, *_, product = gemm_norm(a, None, b, *[None] * 6, "none", 0, "none", torch.float32, EPS, True)
    assert torch.equal(out, product) and out.data_ptr() != product.data_ptr()
    assert torch.equal(gemm_norm(a, None, b, *[None] * 6, "none", 0, "none", torch.float32, EPS, False)[0], out)


def test_without_save_there_is_no_product_and_but_for_lazy_no_statistics():
    operands = draw(5, 64, 32, 0, E4M3, 9)
    for norm, columns in (("none", 0), ("rms", 0), ("layer", 0), ("lazy", 1)):
        dtype = torch.bfloat16 if norm == "lazy" else E4M3
        *_, statistics, product = gemm_norm(*operands, None, norm, 0, "relu", dtype, EPS, False)
        assert statistics.shape == (5, columns)
        assert product.shape == (0, 64)


@pytest.mark.parametrize(("norm", "block"), [("none", 0), ("rms", 0), ("rms", 4), ("layer", 0), ("layer", 4)])
def test_gradcheck_of_the_reference(norm, block):
    drawn = draw(3, 12, 8, 0, torch.float64, 7, "brws", zero_rows=False)
    inputs = [x.cpu().requires_grad_() for x in drawn if x is not None]

    def y(a, b, bias, residual, weight, shift):
        args = a, None, b, None, bias, residual, weight, shift, None, norm, block, "silu", torch.float64
        return reference(GemmNorm.bind(*args, EPS, False))[0]

    assert torch.autograd.gradcheck(y, inputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": torch.ones(3, 31)}, r"a must be \(M, K\) and b \(N, K\), got \(3, 31\) and \(16, 32\)"),
        (
            {"a": torch.ones(3, 32, dtype=torch.int8)},
            "a and b must be both FP8 or of one wider float dtype, got torch.int8",
        ),
        ({"b": torch.ones(16, 32).to(E4M3)}, "of one wider float dtype"),
        ({"a_scale": torch.ones(3)}, r"a_scale must have a shape of \[\(3, 1\)\], got \(3,\)"),
        ({"b_scale": torch.ones(1, 16)}, "b_scale must have a shape of"),
        ({"bias": torch.ones(15)}, "must have shape"),
        ({"residual": torch.ones(16)}, r"residual must be floats of \(3, 16\), got torch.float32 \(16,\)"),
        ({"residual": torch.ones(3, 16).to(E4M3)}, "residual must be floats of"),
        ({"weight": torch.ones(15)}, r"weight must have shape \(16,\)"),
        ({"norm": "block"}, "norm must be one of none, rms, layer, got 'block'"),
        ({"block": 5}, "must divide a row of 16 values, got 5"),
        ({"activation": "swish"}, "activation must be one of"),
        ({"dtype": torch.int8}, "got torch.int8"),
        ({"given": torch.ones(3, 1)}, r"given must have shape \(1,\)"),
        ({"norm": "lazy"}, "needs a given scale"),
        ({"norm": "lazy", "activation": "silu", "dtype": torch.bfloat16}, "a lazy norm must"),
    ],
)
def test_bad_arguments(change, message):
    args = dict.fromkeys(("a", "a_scale", "b", "b_scale", "bias", "residual", "weight", "shift", "given"))
    args |= {"a": torch.ones(3, 32), "b": torch.ones(16, 32), "norm": "rms", "block": 0, "activation": "relu"}
    args |= {"dtype": E4M3, "eps": EPS, "save": True} | change
    with pytest.raises(ValueError, match=message):
        gemm_norm(*args.values())


@pytest.mark.parametrize("arch", CHIPS)
def test_specimens_are_launches_on_no_memory(arch):
    for each in specimens(arch):
        assert each.launch.args["a_scale"] is None or each.launch.args["a_scale"].is_meta
        assert each.launch.constants["BB"] * each.launch.constants["BL"] <= 512


def test_it_moves_at_most_55_percent_of_the_bytes_of_the_sequence():
    """The roofline's: GEMM, norm with activation, quantization; inference at (262144, 512, 512)."""
    [each] = [s for s in specimens("sm_90") if s.name == "gemm_norm rms relu fp8 to fp8 262144x512x512"]
    assert len(each.unfused) == 3
    assert each.launch.nbytes <= 0.55 * sum(nbytes for _, _, nbytes in each.unfused)
    operands = 262144 * (512 + 4) + 512 * (512 + 4)
    assert each.launch.nbytes == operands + 262144 * (512 + 4)


def test_with_a_residual_it_moves_half_of_the_bytes():
    """LayerNorm(x + linear(y)) at (65536, 256, 256): x, y and the result; and the sum, where it is saved."""
    names = {s.name.removeprefix("gemm_norm bias residual layer affine "): s for s in specimens("sm_90")}
    each = names["bfloat16 to bfloat16 65536x256x256"]
    matrix, weight, vectors = 2 * 65536 * 256, 2 * 256 * 256, 3 * 2 * 256
    assert each.launch.nbytes == 3 * matrix + weight + vectors
    assert names["save bfloat16 to bfloat16 65536x256x256"].launch.nbytes == 4 * matrix + weight + vectors + 8 * 65536


def test_small_batches_fill_the_machine():
    """At M = 4096 a tile of 128 rows by 512 columns would leave three quarters of an H100 idle."""
    for arch in ("sm_90", "sm_100", "gfx942", "gfx950"):
        [each] = [s for s in specimens(arch) if s.name == "gemm_norm rms relu fp8 to fp8 4096x512x512"]
        assert each.launch.grid[0] * each.launch.grid[1] >= 128
