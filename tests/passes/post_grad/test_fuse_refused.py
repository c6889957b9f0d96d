"""fuse and raise_norms: what stays outside of a product and why, and what rides in a way of its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from loka_compile.mods.adapt import BlockNorm
from loka_compile.passes.adapt.block_norm import block_norm
from tests.helpers import compile_op_by_op, skipped, speak_of, sqnr_db
from tests.passes.post_grad.test_fuse import EPS, LAST, RAISING, ByHand, D, Tower, fused, loka_ops, rejects, run

pytestmark = pytest.mark.usefixtures("fresh_dynamo", "with_fp8")


class Residual(Tower):
    def forward(self, x):
        y = self.act(self.norms[0](self.up(x)))
        return self.down(y) + y


def test_a_result_that_others_read_is_quantized_apart(plan_for):
    captured, _, _ = run(Residual(), plan_for)
    assert fused(captured)[0] == LAST
    assert any("is also read by add" in reason for reason in rejects(captured))
    assert captured.ops("inference")["aten.amax"] == 2


class ItsOwnWeight(Tower):
    def forward(self, x):
        y = self.up(x)
        return F.layer_norm(y, (D,), y.mean(0))


def test_a_norms_weight_that_is_made_of_the_product_keeps_it_outside(plan_for):
    captured, _, _ = run(ItsOwnWeight(), plan_for)
    assert fused(captured) == ["with bias in its epilogue"] and captured.ops("inference")["aten.rsqrt"] == 1
    assert any("the product has readers before mean is computed" in reason for reason in rejects(captured))


def test_norms_of_rows_wider_than_a_tile_stay_outside(plan_for):
    model = Tower(width=1024)
    captured, out, x = run(model, plan_for)
    assert fused(captured) == ["with bias in its epilogue", LAST, "norm, activation and quantization in one pass"]
    assert any(reason == "row norm needs N <= 512 (one tile); N = 1024" for reason in rejects(captured))
    assert sqnr_db(out, model.double()(x.double())) > 20


def test_blocks_of_wide_rows_ride_without_the_scale(plan_for):
    model = Tower(lambda n: BlockNorm(n, min(n, 256)), width=1024, bias=False)
    captured, _, _ = run(model, plan_for)
    assert fused(captured)[0] == "with rms, relu in its epilogue"
    assert "N = 1024" in rejects(captured)[0] and "scale" in rejects(captured)[0]


@pytest.mark.parametrize("recipe", ["fp8_rowwise", "fp8_tensorwise"])
def test_a_provider_without_an_epilogue(plan_for, recipe):
    captured, _, _ = run(Tower(), plan_for, recipe=recipe, provider="aten")
    assert not fused(captured) and any("aten" in reason for reason in rejects(captured))
    assert captured.ops("inference")["loka.frozen_gemm"] == 2 and captured.ops("inference")["aten.rsqrt"] == 2


def test_padded_columns_have_no_epilogue_and_a_padded_contraction_has(plan_for):
    """40 columns of the first product become 48, and 48 are what the second sums over."""
    model = Tower(width=40)
    captured, out, x = run(model, plan_for)
    assert fused(captured) == [LAST]
    assert speak_of(rejects(captured), "40 -> 48", "padded to 48")
    assert loka_ops(captured) == {"loka.frozen_gemm": 1, "loka.frozen_gemm_norm": 1}
    assert out.is_contiguous() and sqnr_db(out, model.double()(x.double())) > 20


@pytest.mark.parametrize("model", [Tower, ByHand])
def test_on_a_cpu_nothing_is_raised(plan_for, model):
    model = model(nn.RMSNorm) if model is ByHand else model()
    captured, _, _ = run(model, plan_for, device="cpu")
    assert skipped(captured, "raise_norms", "dynamo") and skipped(captured, "fuse", "inference")
    assert loka_ops(captured) == {"loka.frozen_gemm": 2}


def test_raised_norms_without_a_plan_are_written_out_again(plan_for):
    model = Tower(activation=nn.GELU)
    captured, out, x = run(model, plan_for, only=lambda site: False)
    assert len(captured.results["raise_norms", "dynamo"].rewrites) == 2
    assert not loka_ops(captured) and captured.ops("inference")["aten.addmm"] == 2
    torch.testing.assert_close(out, model(x), rtol=2e-2, atol=2e-2)


class Odd(nn.Module):
    def forward(self, x):
        two = F.layer_norm(x.unflatten(-1, (4, 16)), (4, 16)).flatten(-2)
        return two, F.layer_norm(x.double(), (D,)), F.gelu(F.rms_norm(x, (D,)), approximate="tanh")


def test_what_is_not_raised_says_why(plan_for):
    captured, out, x = run(Odd(), plan_for, dynamic=False)
    result = captured.results["raise_norms", "dynamo"]
    assert [rewrite.did for rewrite in result.rewrites] == ["one op: rms"]  # its GELU by tanh is none of ours
    assert speak_of((reject.reason for reject in result.rejects), "(4, 16)", "torch.float64")
    for ours, theirs in zip(out, Odd()(x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


def test_a_norm_in_float32_within_bf16_is_raised_whole(plan_for):
    class Wide(Tower):
        def forward(self, x):
            y = self.up(x)
            return self.down(F.rms_norm(y.float(), (D,), self.norms[0].weight.float(), EPS).to(y.dtype).relu())

    captured, _, _ = run(Wide(), plan_for)
    assert fused(captured)[0] == "with bias, rms, relu, quantization in its epilogue"


def test_block_norm_as_a_mod_rides(plan_for):
    class Blocks(Tower):
        def forward(self, x):
            return self.act(block_norm(self.up(x), 16))

    captured, _, _ = run(Blocks(), plan_for)
    assert fused(captured) == ["with bias, rms, relu in its epilogue"]


def test_empty_batches_and_one_row(plan_for):
    for rows in (0, 1):
        model, x = Tower(), torch.randn(rows, D, dtype=torch.bfloat16)
        with torch.no_grad():
            plan = plan_for("fp8_rowwise", model, x.new_ones(8, D), provider="triton", target="h100")
            out = compile_op_by_op(model, plan, device="cuda", dynamic=False, on_dynamo=RAISING)(x)
        assert out.shape == (rows, D)
