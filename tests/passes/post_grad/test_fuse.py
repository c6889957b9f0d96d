"""fuse and raise_norms: what becomes one op, however it is written, and the same numbers.

The graphs are those of a CUDA device, run op by op here, where the fused op computes its reference.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from loka_compile.mods.adapt import BlockNorm
from loka_compile.passes.raising.raise_norms import RaiseNorms
from loka_compile.passes.simplify.canonicalize import Canonicalize
from tests.helpers import compile_op_by_op, sqnr_db

pytestmark = pytest.mark.usefixtures("fresh_dynamo", "with_fp8")
RAISING = (Canonicalize(), RaiseNorms())
B, D, EPS = 257, 64, 1e-5  # a prime batch


class Tower(nn.Module):
    """Linear, norm, activation; and once more. The input goes through a ReLU: no input is part of a pattern."""

    def __init__(self, norm=nn.LayerNorm, activation=nn.ReLU, width=D, dtype=torch.bfloat16, bias=True):
        super().__init__()
        self.up, self.down = nn.Linear(D, width, bias, dtype=dtype), nn.Linear(width, D, bias, dtype=dtype)
        self.norms = nn.ModuleList(norm(n).to(dtype) for n in (width, D))
        self.act = activation()
        for each in self.norms:
            for parameter in each.parameters():
                nn.init.normal_(parameter, 1.0, 0.2)

    def forward(self, x):
        return self.act(self.norms[1](self.down(self.act(self.norms[0](self.up(x.relu()))))))


class Functional(Tower):
    def forward(self, x):
        x = x.relu()
        for linear, norm in zip((self.up, self.down), self.norms, strict=True):
            y = F.linear(x, linear.weight, linear.bias)
            x = F.relu(F.layer_norm(y, (D,), norm.weight, norm.bias, EPS))
        return x


class ByHand(Tower):
    """RMSNorm and swish gate written out, with methods."""

    def forward(self, x):
        for linear, norm in zip((self.up, self.down), self.norms, strict=True):
            y = linear(x)
            n = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + EPS) * norm.weight
            x = n * n.sigmoid()
        return x


def run(
    model, plan_for, x=None, recipe="fp8_rowwise", provider="triton", grad=False, device="cuda", dynamic=True, **more
):
    x = torch.randn(B, D, dtype=torch.bfloat16) if x is None else x
    with torch.set_grad_enabled(grad):
        plan = plan_for(recipe, model, x[:32], provider=provider, target="h100", **more)
        if dynamic:
            torch._dynamo.mark_dynamic(x, 0)
        captured = compile_op_by_op(model, plan, device=device, on_dynamo=RAISING)
        out = captured(x)
    for name, graph in captured.graphs.items():
        graph.lint()
        assert all("val" in node.meta for node in graph.nodes if node.op != "output"), name
    return captured, out, x


def fused(captured):
    return [rewrite.did for rewrite in captured.results["fuse", "inference"].rewrites]


def rejects(captured):
    return [reject.reason for reject in captured.results["fuse", "inference"].rejects]


def loka_ops(captured):
    return {op: n for op, n in captured.ops("inference").items() if op.startswith("loka.")}


ALL = "with bias, layer, relu, quantization in its epilogue"
LAST = "with bias, layer, relu in its epilogue"


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("model", [Tower, Functional])
def test_linear_norm_activation_quantize_are_one_op(plan_for, model, dynamic):
    model = model()
    captured, out, x = run(model, plan_for, dynamic=dynamic)
    assert fused(captured) == [ALL, LAST] and not rejects(captured)
    assert loka_ops(captured) == {"loka.frozen_gemm_norm": 2}
    assert captured.ops("inference")["aten.amax"] == 1  # only the input is quantized by itself
    assert captured.ops("inference")["aten.rsqrt"] == 0
    assert out.dtype == torch.bfloat16 and out.shape == (B, D)
    assert sqnr_db(out, model.double()(x.double())) > 20


def centered(captured):
    """What `lower` says of each fused product, in order."""
    said = [rewrite.did for rewrite in captured.results["lower", "inference"].rewrites]
    return ["mean taken out" in did for did in said if "frozen_gemm_norm" in did]


def test_the_mean_of_a_layer_norm_is_taken_out_of_parameters_once(plan_for):
    assert centered(run(Tower(), plan_for)[0]) == [True, True]
    assert centered(run(Tower(nn.RMSNorm), plan_for)[0]) == [False, False]
    assert centered(run(Tower(bias=False).float(), plan_for, torch.randn(B, D), recipe="bf16")[0]) == [True, True]
    # a weight of 16 bits would be rounded twice
    assert centered(run(Tower(), plan_for, recipe="bf16")[0]) in ([], [False, False])


def test_a_mean_that_depends_on_the_batch_stays_in_the_norm(plan_for):
    class Shifted(Tower):
        def forward(self, x):
            return self.norms[0](x @ self.up.weight.t() + x.amax(0))

    assert centered(run(Shifted(), plan_for)[0]) == [False]


def test_norms_written_by_hand_are_found(plan_for):
    model = ByHand(nn.RMSNorm)
    captured, out, x = run(model, plan_for)
    assert fused(captured) == [ALL.replace("layer, relu", "rms, silu"), LAST.replace("layer, relu", "rms, silu")]
    assert sqnr_db(out, model.double()(x.double())) > 20


@pytest.mark.parametrize("norm", ["layer", "rms", "block"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.Hardswish, nn.GELU, nn.Identity])
def test_every_norm_with_every_activation(plan_for, norm, activation):
    make = {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "block": lambda n: BlockNorm(n, 16)}[norm]
    model = Tower(make, activation, bias=False)
    captured, out, x = run(model, plan_for)
    assert len(fused(captured)) == 2 and loka_ops(captured) == {"loka.frozen_gemm_norm": 2}
    name = {nn.ReLU: "relu", nn.SiLU: "silu", nn.Hardswish: "hard_swish", nn.GELU: "gelu"}.get(activation)
    parts = filter(None, ["layer" if norm == "layer" else "rms", name])
    assert fused(captured)[1] == f"with {', '.join(parts)} in its epilogue"
    assert sqnr_db(out, model.double()(x.double())) > 20


def test_an_activation_without_a_norm(plan_for):
    model = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, D)).bfloat16()
    captured, out, x = run(model, plan_for)
    assert fused(captured) == ["with bias, relu, quantization in its epilogue", "with bias in its epilogue"]
    assert sqnr_db(out, model.double()(x.double())) > 20


def test_a_product_kept_in_bf16_makes_the_next_ones_fp8(plan_for):
    model = Tower()
    x = torch.randn(B, D, dtype=torch.bfloat16)
    with torch.no_grad():
        first = plan_for("bf16", model, x, provider="triton", target="h100")
        plan = plan_for("fp8_rowwise", model, x, provider="triton", target="h100")
        plan = plan.with_decision(next(d for k, d in first.decisions.items() if k.startswith("up")))
        captured = compile_op_by_op(model, plan, device="cuda", on_dynamo=RAISING)
        out = captured(x)
    assert fused(captured) == [ALL, LAST]
    assert loka_ops(captured) == {"loka.gemm_norm": 1, "loka.frozen_gemm_norm": 1}
    assert captured.ops("inference")["aten.amax"] == 0
    assert sqnr_db(out, model.double()(x.double())) > 20


def test_rows_in_three_dimensions(plan_for):
    model, x = Tower(), torch.randn(31, 3, D, dtype=torch.bfloat16)
    captured, out, _ = run(model, plan_for, x, dynamic=False)
    assert fused(captured) == [ALL, LAST] and out.shape == x.shape
    assert sqnr_db(out, model.double()(x.double())) > 20


def test_one_quantize_for_three_readers(plan_for):
    class Three(Tower):
        def __init__(self):
            super().__init__()
            self.more = nn.ModuleList(nn.Linear(D, D, dtype=torch.bfloat16) for _ in range(3))

        def forward(self, x):
            y = self.act(self.norms[0](self.up(x)))
            return sum(each(y).sin() for each in self.more)

    captured, _, _ = run(Three(), plan_for)
    assert fused(captured)[0] == ALL and captured.ops("inference")["aten.amax"] == 1


# ---------------------------------------------------------------- the product is read by others too

WRITTEN = ", the product written too"


class ReadTwice(Tower):
    def forward(self, x):
        y = self.up(x)
        return self.act(self.norms[0](y)), y


@pytest.mark.parametrize("recipe", ["bf16", "fp8_rowwise"])
@pytest.mark.parametrize("shape", [(B, D), (31, 3, D)])
def test_a_product_that_others_read_is_written_beside_its_norm(plan_for, recipe, shape):
    model, x = ReadTwice(), torch.randn(shape, dtype=torch.bfloat16)
    captured, out, _ = run(model, plan_for, x, recipe=recipe)
    assert fused(captured) == [LAST + WRITTEN] and not rejects(captured)
    op = "loka.gemm_norm" if recipe == "bf16" else "loka.frozen_gemm_norm"
    assert loka_ops(captured) == {op: 1} and captured.ops("inference")["aten.rsqrt"] == 0
    for ours, theirs in zip(out, model.double()(x.double()), strict=True):
        assert ours.shape == x.shape and sqnr_db(ours, theirs) > (20 if recipe != "bf16" else 40)


class OtherRows(Tower):
    """The norm is of rows of another length."""

    def forward(self, x):
        y = self.up(x)
        return F.layer_norm(y.view(-1, D).view(-1, D // 2), (D // 2,)), y


@pytest.mark.parametrize(("model", "width"), [(ReadTwice, 1024), (OtherRows, D)])
def test_a_product_whose_norm_stays_outside_is_computed_once(plan_for, model, width):
    model, x = model(width=width), torch.randn(31, 3, D, dtype=torch.bfloat16)
    captured, out, _ = run(model, plan_for, x, recipe="bf16", dynamic=False)
    assert fused(captured) == ["with bias in its epilogue"] and loka_ops(captured) == {"loka.gemm_norm": 1}
    for ours, theirs in zip(out, model.double()(x.double()), strict=True):
        assert ours.shape == theirs.shape and sqnr_db(ours, theirs) > 40


class PostNorm(Tower):
    """Of the sum with a residual, which nothing else reads."""

    def forward(self, x):
        x = self.norms[0](x + self.up(x.relu()))
        return self.norms[1](self.down(self.act(x)) + x)


class PreNorm(Tower):
    """The sum is the next residual."""

    def forward(self, x):
        x = x + self.up(x.relu())
        return x + self.down(self.norms[0](x))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("shape", [(B, D), (31, 3, D)])
def test_a_residual_is_added_before_the_norm(plan_for, norm, shape, dynamic):
    model, x = PostNorm(norm), torch.randn(shape, dtype=torch.bfloat16)
    captured, out, _ = run(model, plan_for, x, recipe="bf16", dynamic=dynamic)
    name = "layer" if norm is nn.LayerNorm else "rms"
    assert fused(captured) == [f"with bias, residual, {name} in its epilogue"] * 2
    assert loka_ops(captured) == {"loka.gemm_norm": 2}
    assert captured.ops("inference")["aten.add"] == 0 == captured.ops("inference")["aten.rsqrt"]
    assert out.shape == x.shape and sqnr_db(out, model.double()(x.double())) > 40


@pytest.mark.parametrize("recipe", ["bf16", "fp8_rowwise"])
@pytest.mark.parametrize("shape", [(B, D), (31, 3, D)])
def test_the_sum_is_written_where_it_is_the_next_residual(plan_for, recipe, shape):
    model, x = PreNorm(), torch.randn(shape, dtype=torch.bfloat16)
    captured, out, _ = run(model, plan_for, x, recipe=recipe)
    first = "with bias, residual, layer, quantization" if recipe != "bf16" else "with bias, residual, layer"
    assert fused(captured) == [first + " in its epilogue" + WRITTEN, "with bias in its epilogue"]
    sums = 1 if recipe == "bf16" else 2  # quantizing has one of its own, for infinities
    assert captured.ops("inference")["aten.add"] == sums and captured.ops("inference")["aten.rsqrt"] == 0
    assert sqnr_db(out, model.double()(x.double())) > (20 if recipe != "bf16" else 40)


class NoResidual(Tower):
    """Two of them, one that is broadcast, and sums that no norm reads."""

    def forward(self, x):
        y = self.norms[0](x.sin() + (x.cos() + self.up(x)))
        return self.norms[1](x[:1] + self.down(y)), self.up(y) + x


def test_what_is_no_residual(plan_for):
    model = NoResidual()
    captured, out, x = run(model, plan_for, recipe="bf16")
    assert fused(captured) == ["with bias in its epilogue"] * 3
    for ours, theirs in zip(out, model.double()(x.double()), strict=True):
        assert sqnr_db(ours, theirs) > 40
