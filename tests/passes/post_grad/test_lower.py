"""lower: loka's ops become kernels that Inductor sees, or frozen products of parameters."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from loka_compile.kernels.gemm_norm.frozen_gemm_norm import frozen_gemm_norm
from loka_compile.kernels.gemm_norm.gemm_norm import gemm_norm
from tests.helpers import INT_MM, compile_op_by_op, sqnr_db

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(32, 48), nn.Linear(48, 16, bias=False)

    def forward(self, x):
        return self.down(self.up(x).relu())


def run(fn, plan, *args, grad=False, **kwargs):
    captured = compile_op_by_op(fn, plan, **kwargs)
    with torch.set_grad_enabled(grad):
        out = captured(*args)
    for name, graph in captured.graphs.items():
        graph.lint()
        assert all("val" in node.meta for node in graph.nodes if node.op != "output")
        if name not in ("before", "after"):
            assert not captured.ops(name)["loka.quantize"]
    return captured, out


def kernels(captured):
    """What each rewrite of lower says it put in, by site."""
    lowered = [result for (name, _), result in captured.results.items() if name == "lower"]
    return {r.site: r.kernel for result in lowered for r in result.rewrites}


def loka_ops(captured, graph="inference"):
    return {op: n for op, n in captured.ops(graph).items() if op.startswith("loka.")}


@pytest.mark.parametrize("rows", [1, 5, 257])
@pytest.mark.parametrize("dynamic", [False, True])
def test_inference_with_int8_freezes_the_weights(plan_for, rows, dynamic):
    model, x = Mlp(), torch.randn(rows, 32)
    if dynamic and rows > 1:
        torch._dynamo.mark_dynamic(x, 0)
    with torch.no_grad():
        plan = plan_for("int8_rowwise", model, x)
    captured, out = run(model, plan, x)
    # Inductor plans no memory where sizes are not known.
    kernel = "loka.any_frozen_int_mm" if dynamic and rows > 1 else "loka.frozen_int_mm"
    assert loka_ops(captured) == {kernel: 2}
    assert captured.ops("inference")["aten._int_mm"] == 0
    assert captured.ops("inference")["aten.amax"] == 2  # of the two activations, none of a weight
    assert set(kernels(captured).values()) == {kernel}
    assert sqnr_db(out, model(x)) > 30
    assert out.dtype == torch.float32


@pytest.mark.parametrize(
    ("recipe", "reductions"),
    [("fp8_tensorwise", 2), ("fp8_rowwise", 2), ("fp8_blockwise", 2), ("bf16", 0), ("fp16", 0)],
)
def test_inference_with_other_recipes_freezes_the_weights(plan_for, recipe, reductions):
    model, x = Mlp(), torch.randn(5, 32)
    with torch.no_grad():
        plan = plan_for(recipe, model, x)
    captured, out = run(model, plan, x)
    assert loka_ops(captured) == {"loka.frozen_gemm" if reductions else "loka.frozen_mm": 2}
    assert captured.ops("inference")["aten.amax"] == reductions
    assert sqnr_db(out, model(x)) > 20


@pytest.mark.parametrize("recipe", ["int8_rowwise", "fp8_tensorwise", "fp8_rowwise", "fp8_blockwise", "bf16"])
def test_weights_are_quantized_once_and_anew_when_they_change(plan_for, recipe, quantized):
    model, x = Mlp(), torch.randn(5, 32)
    with torch.no_grad():
        plan = plan_for(recipe, model, x)
    captured, _ = run(model, plan, x)
    quantized.clear()
    with torch.no_grad():
        captured(x)
        assert not quantized
        for change in (
            lambda: model.up.weight.mul_(3),
            lambda: model.up.weight.data.neg_(),
            lambda: setattr(model.down.weight, "data", torch.randn(16, 48)),
            lambda: model.load_state_dict(Mlp().state_dict()),
        ):
            change()
            assert sqnr_db(captured(x), model(x)) > 20
    assert captured.compilations == 1
    assert len(quantized) == (0 if recipe == "bf16" else 5)


@pytest.mark.parametrize(
    ("recipe", "kernel"),
    [("int8_rowwise", INT_MM), ("fp8_tensorwise", "_scaled_mm"), ("fp8_rowwise", "_scaled_mm"), ("bf16", "mm")],
)
def test_training_calls_the_providers_kernels(plan_for, recipe, kernel):
    model, x = Mlp(), torch.randn(5, 32)
    captured, _ = run(model, plan_for(recipe, model, x), x, grad=True)
    op = kernel if kernel.startswith("loka.") else f"aten.{kernel}"
    assert captured.ops("forward")[op] == 2
    assert captured.ops("backward")[op] == 3  # x wants no gradient
    assert not loka_ops(captured, "forward").keys() - {op}
    assert not loka_ops(captured, "backward").keys() - {op}
    assert len(kernels(captured)) == 5
    assert set(kernels(captured).values()) == {"mm[bfloat16]" if kernel == "mm" else kernel}
    for graph in ("forward", "backward"):
        assert captured.ops(graph)["aten.addmm"] == 0
        assert kernel == "mm" or captured.ops(graph)["aten.mm"] == 0


def test_emulation_stays_one_op_to_be_found(plan_for):
    model, x = Mlp(), torch.randn(5, 32)
    captured, _ = run(model, plan_for("fp8_blockwise", model, x), x, grad=True)
    assert loka_ops(captured, "forward") == {"loka.scaled_gemm": 2}
    assert loka_ops(captured, "backward") == {"loka.scaled_gemm": 3}
    assert set(kernels(captured).values()) == {"loka.scaled_gemm"}


@pytest.mark.parametrize("recipe", ["bf16", "fp16", "int8_rowwise", "fp8_rowwise"])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_batched_parameter(plan_for, recipe, transposed):
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, *(7, 16) if transposed else (16, 7)))

        def forward(self, x):
            return x @ (self.w.mT if transposed else self.w)

    model, x = Experts(), torch.randn(3, 5, 16)
    with torch.no_grad():
        plan = plan_for(recipe, model, x, target="h100")
    captured, out = run(model, plan, x)
    assert loka_ops(captured) == {"loka.frozen_mm" if recipe in ("bf16", "fp16") else "loka.frozen_gemm": 1}
    assert out.shape == (3, 5, 7)
    assert sqnr_db(out, model(x)) > 20


FORMS = {
    "x @ w": lambda x, w: x @ w,
    "x @ w.t()": lambda x, w: x @ w.t(),
    "linear(x, w.t())": lambda x, w: F.linear(x, w.t()),
    "w @ x.t()": lambda x, w: w @ x.t(),
}


@pytest.mark.parametrize("recipe", ["bf16", "int8_rowwise", "fp8_tensorwise"])
@pytest.mark.parametrize("form", FORMS)
def test_every_way_a_parameter_stands(plan_for, recipe, form):
    class Standing(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(16, 16) * torch.logspace(-1, 1, 16))

        def forward(self, x):
            return FORMS[form](x, self.w)

    model, x = Standing(), torch.randn(5, 16)
    with torch.no_grad():
        plan = plan_for(recipe, model, x)
    captured, out = run(model, plan, x)
    assert bool(loka_ops(captured).keys() - {INT_MM}) == (form != "w @ x.t()")  # a left operand is not frozen
    assert sqnr_db(out, model(x)) > 20


def test_a_weight_that_the_graph_changes_is_quantized_in_the_graph(plan_for):
    class Decaying(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(32, 16))

        def forward(self, x):
            y = x @ self.w
            self.w.mul_(0.5)
            return y

    model, other, x = Decaying(), Decaying(), torch.randn(5, 32)
    with torch.no_grad():
        plan = plan_for("int8_rowwise", model, x)
        other.load_state_dict(model.state_dict())
        captured, out = run(model, plan, x)
        assert not loka_ops(captured).keys() - {INT_MM}
        assert captured.ops("inference")[INT_MM if INT_MM.startswith("loka.") else f"aten.{INT_MM}"] == 1
        assert sqnr_db(out, other(x)) > 30
        assert sqnr_db(captured(x), other(x)) > 30
    torch.testing.assert_close(model.w, other.w)


def test_tied_weights_are_frozen_once(plan_for, quantized):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x).relu())

    model, x = Tied(), torch.randn(5, 16)
    with torch.no_grad():
        plan = plan_for("int8_rowwise", model, x)
    captured, out = run(model, plan, x)
    assert sqnr_db(out, model(x)) > 30
    quantized.clear()
    with torch.no_grad():
        model.first.weight.mul_(2)
        assert sqnr_db(captured(x), model(x)) > 30
    assert len(quantized) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("recipe", ["int8_rowwise", "fp8_rowwise", "bf16"])
def test_bad_activations_spoil_their_rows_only(plan_for, recipe, bad):
    model = nn.Sequential(nn.Linear(32, 16))
    x = torch.randn(6, 32)
    with torch.no_grad():
        captured, clean = run(model, plan_for(recipe, model, x), x)
        x = x.clone()
        x[2, 3] = bad
        out = captured(x)
    assert not out[2].isfinite().any()
    assert torch.equal(out[[0, 1, 3, 4, 5]], clean[[0, 1, 3, 4, 5]])


@pytest.mark.parametrize("recipe", ["int8_rowwise", "fp8_tensorwise", "fp8_rowwise", "fp8_blockwise", "bf16"])
@pytest.mark.parametrize("rows", [0, 1])
def test_empty_batch_and_batch_of_one(plan_for, recipe, rows):
    model, x = Mlp(), torch.randn(rows, 32)
    with torch.no_grad():
        plan = plan_for(recipe, model, x)
    _, out = run(model, plan, x)
    assert out.shape == (rows, 16)
    _, out = run(model, plan_for(recipe, model, x), x, grad=True)
    out.sum().backward()
    assert model.up.weight.grad.isfinite().all()


def test_zero_rows_give_the_bias(plan_for):
    model = nn.Sequential(nn.Linear(32, 16))
    for recipe in ("int8_rowwise", "fp8_tensorwise", "fp8_rowwise", "fp8_blockwise"):
        x = torch.randn(5, 32)
        x[1] = 0
        with torch.no_grad():
            _, out = run(model, plan_for(recipe, model, x), x)
        assert torch.equal(out[1], model[0].bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_may_call_gemm_norm_itself(plan_for, dtype):
    """On a CPU it is written out, the frozen form with a frozen product."""
    weight = nn.Parameter(torch.randn(48, 32))
    rest = None, None, None, None, None, "layer", 0, "relu", torch.float32, 1e-5, False

    def model(x):
        out = gemm_norm(x, None, weight.to(dtype), None, *rest)[0]
        if dtype == torch.float32:
            return out
        return out + frozen_gemm_norm(x, None, weight, True, dtype, *rest)[0]

    x = torch.randn(5, 32).to(dtype)
    with torch.no_grad():
        plan = plan_for("int8_rowwise", model, x)
    captured, out = run(model, plan, x)
    assert loka_ops(captured) == ({} if dtype == torch.float32 else {"loka.frozen_mm": 1})
    with torch.no_grad():
        wanted = model(x)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 0.06)
