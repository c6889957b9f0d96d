"""Padding to what a kernel wants: what is padded, what is not, and that it changes no number.

The graphs are those of a CUDA device, run op by op here. Operands of 0 and 7 are exact in every format (7 becomes the
largest value, with a scale that is a power of two in FP8), and so are their sums: there the numbers are the same to the
last bit, whatever the kernel sums first.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import loka_compile as loka
from loka_compile.graph.sites import annotate
from loka_compile.kernels.providers import PROVIDERS, triton
from loka_compile.kernels.quantize import quantize as quantization
from loka_compile.passes import Context
from loka_compile.passes.joint.precision import Precision
from loka_compile.spec.plan import parse_plan
from tests.helpers import compile_op_by_op, sqnr_db

pytestmark = pytest.mark.usefixtures("fresh_dynamo", "with_fp8")
FP8 = [("fp8_rowwise", "aten"), ("fp8_tensorwise", "aten"), ("fp8_rowwise", "triton"), ("fp8_blockwise", "triton")]
KERNELS = [*FP8, ("int8_rowwise", "aten"), ("bf16", "triton")]
B = 257  # a prime batch


@pytest.fixture(scope="module")
def with_fp8():
    """Planned as on a GPU that has FP8; there is none here to ask."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton, "_fp8_here", lambda: True)
        yield


def run(fn, plan, *args, grad=False, device="cuda"):
    captured = compile_op_by_op(fn, plan, device=device)
    with torch.set_grad_enabled(grad):
        out = captured(*args)
    for name, graph in captured.graphs.items():
        graph.lint()
        assert all("val" in node.meta for node in graph.nodes if node.op != "output"), name
    return captured, out


def did(captured, graph="inference"):
    return {rewrite.site: rewrite.did for rewrite in captured.results["precision", graph].rewrites}


def why_not(captured, graph="inference"):
    return {reject.site: reject.reason for reject in captured.results["precision", graph].rejects}


def pads(captured, graph="after"):
    """Columns and rows that are added, of every operand that is padded; 16 and more are a block's own."""
    nodes = captured.graphs[graph].find_nodes(op="call_function", target=torch.ops.aten.constant_pad_nd.default)
    return sorted((node.args[1][1], node.args[1][3]) for node in nodes if max(node.args[1]) < 16)


def sevens(*shape):
    return 7.0 * torch.randint(-1, 2, shape)


# ---------------------------------------------------------------- inference


@pytest.mark.parametrize(("recipe", "provider"), KERNELS)
@pytest.mark.parametrize(("k", "n"), [(109, 64), (64, 100), (109, 100), (1, 1)])
@pytest.mark.parametrize("bias", [False, True])
def test_the_left_operand_is_padded_in_the_graph_and_a_frozen_weight_once(plan_for, recipe, provider, k, n, bias):
    model, x = nn.Sequential(nn.Linear(k, n, bias)), torch.randn(B, k)
    if recipe != "int8_rowwise":  # CUDA's _int_mm wants to know that there are more than 16 rows
        torch._dynamo.mark_dynamic(x, 0)
    with torch.no_grad():
        plan = plan_for(recipe, model, x, provider=provider, target="h100")
    captured, out = run(model, plan, x)
    grown = [f"{name} {v} -> {-(-v // 16) * 16}" for name, v in (("K", k), ("N", n)) if v % 16]
    assert did(captured) == {"0#0:output": f"{recipe} by {provider}, padded: {', '.join(grown)}"}
    assert pads(captured, "inference") == ([(-k % 16, 0)] if k % 16 else [])
    fused = provider == "triton" and recipe != "fp8_blockwise" and bias and n % 16 == 0
    kernel = "loka.frozen_int_mm" if recipe == "int8_rowwise" else "loka.frozen_gemm"
    assert captured.ops("inference")["loka.frozen_gemm_norm" if fused else kernel] == 1
    assert out.shape == (B, n) and out.is_contiguous()
    assert sqnr_db(out, model(x)) > 20
    with torch.no_grad():  # the weight is exact, and what is left is none of padding's
        model[0].weight.copy_(sevens(n, k))
        x = sevens(B, k)
        torch.testing.assert_close(captured(x), model(x), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(("recipe", "provider"), KERNELS)
@pytest.mark.parametrize(("k", "n"), [(109, 64), (64, 100), (109, 100), (300, 7)])
def test_the_numbers_are_those_of_the_recipe_unpadded(plan_for, recipe, provider, k, n):
    """In float64 from the operands quantized as they are; int8 sums exactly, to the last bit."""
    model, x = nn.Sequential(nn.Linear(k, n, bias=False)), torch.randn(B, k).exp()
    with torch.no_grad():
        plan = plan_for(recipe, model, x, provider=provider, target="h100")
    _, out = run(model, plan, x)
    w = model[0].weight.detach().t()
    if recipe == "bf16":
        expected = x.bfloat16().double() @ w.bfloat16().double()
    else:
        kind, dtype = recipe.rpartition("wise")[0].split("_")[1], recipe.split("_")[0]
        dtype = torch.int8 if dtype == "int8" else torch.float8_e4m3fn
        a = quantization.reference(x, dtype, kind, -1)
        b = quantization.reference(w, dtype, "tile" if kind == "block" else kind, -2)
        if dtype == torch.int8:
            assert torch.equal(out, PROVIDERS["aten"].product(*a, *b, torch.float32))
        expected = quantization.dequantize(*a).double() @ quantization.dequantize(*b).double()
    assert (out - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize(("recipe", "provider"), KERNELS)
def test_a_frozen_weight_is_quantized_once_and_anew_when_it_changes(plan_for, recipe, provider, quantized):
    model, x = nn.Sequential(nn.Linear(109, 100, bias=False)), torch.randn(B, 109)
    with torch.no_grad():
        plan = plan_for(recipe, model, x, provider=provider, target="h100")
    captured, _ = run(model, plan, x)
    quantized.clear()
    with torch.no_grad():
        captured(x)
        assert not quantized
        model[0].weight.mul_(3)
        for _ in range(2):
            assert sqnr_db(captured(x), model(x)) > 20
    assert len(quantized) == (0 if recipe == "bf16" else 1) and captured.compilations == 1


def test_a_model_in_bf16_freezes_its_padded_weight(plan_for):
    model, x = nn.Sequential(nn.Linear(109, 100, bias=False)).bfloat16(), torch.randn(B, 109).bfloat16()
    with torch.no_grad():
        captured, out = run(model, plan_for("bf16", model, x, provider="triton", target="h100"), x)
    assert captured.ops("inference")["loka.frozen_gemm"] == 1 and pads(captured, "inference") == [(3, 0)]
    assert sqnr_db(out, model.double()(x.double())) > 40


def test_a_batch_of_matrices(plan_for):
    fn = lambda x, w: x @ w  # noqa: E731
    args = torch.randn(3, 5, 109), torch.randn(3, 109, 7)
    captured, out = run(fn, plan_for("fp8_rowwise", fn, *args, provider="triton", target="h100"), *args)
    assert pads(captured) == [(3, 0), (9, 3)] and out.is_contiguous()
    assert sqnr_db(out, fn(*args)) > 20


class Three(nn.Module):
    """Three linears of one x."""

    def __init__(self, *widths):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(109, n) for n in widths)

    def forward(self, x):
        return sum(layer(x).sum(-1) for layer in self.layers)


def test_one_pad_and_one_quantize_serve_three_linears(plan_for):
    model, x = Three(64, 100, 32), torch.randn(B, 109)
    with torch.no_grad():
        captured, _ = run(model, plan_for("fp8_rowwise", model, x, target="h100"), x)
    assert pads(captured, "inference") == [(3, 0)] and captured.ops("inference")["aten.amax"] == 1


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_training_step_pads_every_product_where_its_sizes_are_numbers(plan_for, dynamic):
    """x serves output and grad_weight, and g both gradients, padded once each way that they are read."""
    model, x = nn.Sequential(nn.Linear(109, 100)), torch.randn(B, 109, requires_grad=True)
    if dynamic:
        torch._dynamo.mark_dynamic(x, 0)
    plan = plan_for("fp8_tensorwise", model, x, target="h100", dynamic=dynamic or None)
    captured, out = run(model, plan, x, grad=True)
    by = "fp8_tensorwise by aten, padded: "
    expected = {"0#0:output": by + "K 109 -> 112, N 100 -> 112", "0#0:grad_input": by + "K 100 -> 112, N 109 -> 112"}
    if dynamic:
        assert did(captured, "joint") == expected
        [reason] = why_not(captured, "joint").values()
        assert "it wants multiples of 16, and K = s" in reason and reason.endswith(": only numbers are padded")
        assert pads(captured) == [(3, 0), (3, 12), (12, 0)]  # x, the weight of both products, g
    else:
        assert did(captured, "joint") == expected | {"0#0:grad_weight": by + "K 257 -> 272, N 109 -> 112"}
        assert pads(captured) == [(0, 15), (3, 0), (3, 12), (3, 15), (12, 0)]  # g and x along the batch too
    g = torch.randn_like(out)
    got = torch.autograd.grad(out, (x, model[0].weight), g)
    for a, b in zip((out, *got), (model(x), *torch.autograd.grad(model(x), (x, model[0].weight), g)), strict=True):
        assert a.is_contiguous() and sqnr_db(a, b) > 20


@given(m=st.integers(2, 40), k=st.integers(2, 70), n=st.integers(2, 70), kernel=st.sampled_from(KERNELS))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_sizes_forward_and_backward_to_the_last_bit(plan_for, m, k, n, kernel):
    torch._dynamo.reset()
    fn, (recipe, provider) = (lambda x, w: x @ w), kernel
    m += 16 * (recipe == "int8_rowwise")  # more rows than CUDA's _int_mm wants, of grad_weight too
    k += 16 * (recipe == "int8_rowwise")
    x, w = sevens(m, k).requires_grad_(), sevens(k, n).requires_grad_()
    g = sevens(m, n)
    plan = plan_for(recipe, fn, x, w, provider=provider, target="h100")
    captured, out = run(fn, plan, x, w, grad=True)
    assert len(did(captured, "joint")) == 3
    padded = any("padded" in each for each in did(captured, "joint").values())
    assert padded == any(size % 16 for size in (m, k, n))
    got = out, *torch.autograd.grad(out, (x, w), g)
    if recipe == "int8_rowwise":  # 7 / 127 is no power of two: the same kernel, unpadded
        captured, out = run(fn, plan, x, w, grad=True, device="cpu")
        assert not pads(captured)
        expected = out, *torch.autograd.grad(out, (x, w), g)
    else:
        expected = fn(x, w), *torch.autograd.grad(fn(x, w), (x, w), g)
    assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_values_spoil_their_rows_only(plan_for, bad):
    model, x = nn.Sequential(nn.Linear(109, 100)), torch.randn(6, 109)
    with torch.no_grad():
        captured, clean = run(model, plan_for("fp8_rowwise", model, x, target="h100"), x)
        x = x.clone()
        x[2, 3] = bad
        out = captured(x)
    assert not out[2].isfinite().any() and torch.equal(out[[0, 1, 3, 4, 5]], clean[[0, 1, 3, 4, 5]])


def test_an_empty_batch(plan_for):
    model, x = nn.Sequential(nn.Linear(109, 100)), torch.randn(0, 109)
    with torch.no_grad():
        _, out = run(model, plan_for("fp8_rowwise", model, x, provider="triton", target="h100"), x)
    assert out.shape == (0, 100)


# ---------------------------------------------------------------- what stays


@pytest.mark.parametrize("recipe", ["fp8_rowwise", "fp8_tensorwise", "int8_rowwise", "uint8_affine"])
@pytest.mark.parametrize("target", ["cpu", "h100"])
def test_on_a_cpu_nothing_is_padded(plan_for, recipe, target):
    if (recipe, target) == ("uint8_affine", "h100"):
        pytest.skip("no GPU kernel takes it")
    model, x = nn.Sequential(nn.Linear(109, 100)), torch.randn(B, 109)
    with torch.no_grad():
        captured, _ = run(model, plan_for(recipe, model, x, target=target), x, device="cpu")
    assert did(captured) == {"0#0:output": f"{recipe} by aten"}
    assert not any(pads(captured, graph) for graph in captured.graphs)


def test_twice_is_once(plan_for):
    model, x = Three(64, 100, 32), torch.randn(B, 109)
    with torch.no_grad():
        plan = plan_for("fp8_rowwise", model, x, target="h100")
        captured, _ = run(model, plan, x)
    graph = captured.graphs["after"]
    before = captured.code("after")
    result = Precision()(graph, Context(plan, "cuda"))
    assert not result.rewrites and not annotate(graph) and captured.code("after") == before


def test_a_plan_from_its_file_pads_alike(plan_for):
    model, x = Three(64, 100, 32), torch.randn(B, 109)
    with torch.no_grad():
        plan = plan_for("fp8_rowwise", model, x, target="h100")
        codes = [run(model, each, x)[0].code("inference") for each in (plan, parse_plan(plan.to_json()))]
    assert codes[0] == codes[1] and "constant_pad_nd" in codes[0]


def test_explain_says_what_is_padded(op_by_op):
    model, x = nn.Sequential(nn.Linear(109, 1024), nn.ReLU()).bfloat16(), torch.randn(4096, 109).bfloat16()
    compiled = torch.compile(model, backend="loka", options={"target": "h100", "measure_calls": 0})
    with torch.no_grad():
        compiled(x)
    [row] = loka.explain(compiled).rows
    assert row.recipe != "keep" and row.reason.endswith("padded: K 109 -> 112")
