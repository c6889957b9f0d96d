"""precision: what a plan's recipes become in the inference graph and in the joint graph."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import nn

from loka_compile.graph.sites import SITE_META
from loka_compile.passes import PIPELINE
from loka_compile.spec.decision import KEPT, Candidate
from loka_compile.spec.plan import Plan
from tests.helpers import compile_op_by_op, speak_of, sqnr_db

pytestmark = pytest.mark.usefixtures("fresh_dynamo")
PRECISION = replace(PIPELINE, post_grad=())


class Three(nn.Module):
    """Three linears of one x."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 16) for _ in range(3))

    def forward(self, x):
        return sum(layer(x).sin() for layer in self.layers)


def run(fn, plan, *args, **kwargs):
    captured = compile_op_by_op(fn, plan, pipeline=PRECISION, **kwargs)
    out = captured(*args)
    check_metadata(captured)
    return captured, out


def check_metadata(captured):
    for name in ("before", "after"):
        captured.graphs[name].lint()
        assert all("val" in node.meta for node in captured.graphs[name].nodes if node.op not in ("output",))
    names = [n.meta for n in captured.graphs["after"].nodes if str(n.target).startswith("loka.")]
    assert all("seq_nr" in meta for meta in names)
    sites = {node.meta[SITE_META].key for node in captured.graphs["after"].nodes if SITE_META in node.meta}
    assert did(captured).keys() <= sites


def loka_ops(captured, graph="after"):
    return {op.removeprefix("loka."): n for op, n in captured.ops(graph).items() if op.startswith("loka.")}


def quantized(captured):
    """(dtype, scaling, axis) of every quantize node, counted."""
    nodes = captured.graphs["after"].find_nodes(op="call_function", target=torch.ops.loka.quantize.default)
    return Counter((str(n.args[1]).removeprefix("torch."), *n.args[2:]) for n in nodes)


@pytest.mark.parametrize("rows", [4, 257])
@pytest.mark.parametrize("dynamic", [False, True])
def test_one_quantize_of_x_serves_three_linears(plan_for, rows, dynamic):
    model, x = Three(), torch.randn(rows, 32)
    if dynamic:
        torch._dynamo.mark_dynamic(x, 0)
    with torch.no_grad():
        captured, out = run(model, plan_for("int8_rowwise", model, x), x)
        assert sqnr_db(out, model(x)) > 30
    assert captured.ops("before")["aten.addmm"] == 3
    assert captured.ops("after")["aten.addmm"] == 0
    assert loka_ops(captured) == {"quantize": 1 + 3, "scaled_gemm": 3}
    assert quantized(captured) == {("int8", "row", -1): 4}  # a linear's weight is transposed: its rows are contracted


def test_a_training_step_quantizes_along_each_contraction(plan_for):
    """Row-wise: x and gradient along both of their dimensions, the weight along both; nothing twice."""
    model, x = nn.Sequential(nn.Linear(32, 16)), torch.randn(5, 32, requires_grad=True)
    captured, _ = run(model, plan_for("int8_rowwise", model, x), x)
    assert sum(captured.ops("before")[op] for op in ("aten.mm", "aten.addmm")) == 3
    assert sum(captured.ops("after")[op] for op in ("aten.mm", "aten.addmm")) == 0
    assert loka_ops(captured) == {"quantize": 6, "scaled_gemm": 3}
    assert quantized(captured) == {("int8", "row", -1): 3, ("int8", "row", -2): 3}


def test_tensorwise_operands_are_shared_by_output_and_gradients(plan_for):
    """One scale has no direction: x serves output and grad_weight, the weight output and grad_input, g both."""
    model, x = nn.Sequential(nn.Linear(32, 16)), torch.randn(5, 32, requires_grad=True)
    captured, _ = run(model, plan_for("fp8_tensorwise", model, x), x)
    assert loka_ops(captured) == {"quantize": 3, "scaled_gemm": 3}
    assert Counter(dtype for dtype, _, _ in quantized(captured).elements()) == {"float8_e4m3fn": 2, "float8_e5m2": 1}


def test_gradients_have_their_own_format(plan_for):
    model, x = nn.Sequential(nn.Linear(32, 16)), torch.randn(5, 32, requires_grad=True)
    captured, _ = run(model, plan_for("fp8_tensorwise", model, x), x)
    gemms = captured.graphs["after"].find_nodes(op="call_function", target=torch.ops.loka.scaled_gemm.default)
    for node in gemms:
        site = node.meta[SITE_META]
        formats = {"lhs": node.args[0].meta["val"].dtype, "rhs": node.args[2].meta["val"].dtype}
        expected = {side: torch.float8_e5m2 if site.gradient == side else torch.float8_e4m3fn for side in formats}
        assert formats == expected


def test_blockwise_scales_left_by_block_and_right_by_tile(plan_for):
    model, x = nn.Sequential(nn.Linear(256, 200)), torch.randn(5, 256)
    with torch.no_grad():
        captured, out = run(model, plan_for("fp8_blockwise", model, x), x)
        assert sqnr_db(out, model(x)) > 22
    assert Counter(how for _, how, _ in quantized(captured).elements()) == {"block": 1, "tile": 1}


@pytest.mark.parametrize("recipe", ["bf16", "fp16"])
def test_16_bit_is_a_cast(plan_for, recipe):
    model, x = Three(), torch.randn(5, 32)
    with torch.no_grad():
        captured, out = run(model, plan_for(recipe, model, x), x)
        assert sqnr_db(out, model(x)) > 40
    assert loka_ops(captured) == {"scaled_gemm": 3}
    assert captured.ops("after")["prims.convert_element_type"] == 1 + 3


def test_no_cast_where_the_model_has_the_dtype(plan_for):
    model, x = Three().bfloat16(), torch.randn(5, 32, dtype=torch.bfloat16)
    with torch.no_grad():
        captured, out = run(model, plan_for("bf16", model, x), x)
    assert out.dtype == torch.bfloat16
    assert captured.ops("after")["prims.convert_element_type"] == captured.ops("before")["prims.convert_element_type"]


@pytest.mark.parametrize(("alpha", "beta"), [(1, 1), (0.5, 1), (1, 3.0), (-2, 0.25), (1, 0), (0, 1)])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("recipe", ["bf16", "int8_rowwise", "fp8_tensorwise"])
def test_alpha_and_beta(plan_for, alpha, beta, batched, recipe):
    add = torch.baddbmm if batched else torch.addmm
    fn = lambda c, x, w: add(c, x, w, alpha=alpha, beta=beta)  # noqa: E731
    lead = (3,) if batched else ()
    args = torch.randn(*lead, 5, 16), torch.randn(*lead, 5, 32), torch.randn(*lead, 32, 16)
    captured, out = run(fn, plan_for(recipe, fn, *args, target="h100"), *args)
    assert captured.ops("after")["loka.scaled_gemm"] == 1
    assert sqnr_db(out, fn(*args)) > 20


def test_beta_zero_ignores_the_bias(plan_for):
    """As addmm does: what is in it, NaN included, does not count."""
    fn = lambda c, x, w: torch.addmm(c, x, w, beta=0)  # noqa: E731
    args = torch.full((5, 16), float("nan")), torch.randn(5, 32), torch.randn(32, 16)
    _, out = run(fn, plan_for("bf16", fn, *args), *args)
    assert sqnr_db(out, fn(*args)) > 40


@pytest.mark.parametrize("recipe", ["bf16", "fp16", "fp8_rowwise", "int8_rowwise", "fp8_blockwise"])
def test_batches(plan_for, recipe):
    fn = lambda x, w: x @ w  # noqa: E731
    args = torch.randn(3, 5, 130, requires_grad=True), torch.randn(3, 130, 7, requires_grad=True)
    plan = plan_for(recipe, fn, *args, target="h100")
    captured, out = run(fn, plan, *args)
    assert captured.ops("after")["loka.scaled_gemm"] == 3
    assert captured.ops("after")["aten.bmm"] == 0
    got, expected = (torch.autograd.grad((o * o).sum(), args) for o in (out, fn(*args)))
    for a, b in zip((out, *got), (fn(*args), *expected), strict=True):
        assert sqnr_db(a, b) > 20


def test_x_by_its_own_transpose_shares_one_quantize(plan_for):
    fn = lambda x: x @ x.transpose(1, 2)  # noqa: E731
    x = torch.randn(3, 5, 64)
    captured, out = run(fn, plan_for("fp8_rowwise", fn, x, target="h100"), x)
    assert loka_ops(captured) == {"quantize": 1, "scaled_gemm": 1}
    assert sqnr_db(out, fn(x)) > 20


def did(captured):
    return {r.site: r.did for result in captured.results.values() for r in result.rewrites}


def why_not(captured):
    """By site; what the runner says of passes that do not serve this device is of none."""
    return {r.site: r.reason for result in captured.results.values() for r in result.rejects if r.site}


def test_what_the_provider_of_other_hardware_cannot_run_here_runs_emulated(plan_for):
    """No block-scaled `_scaled_mm`, no library this machine has not heard of: for a plan made for other hardware."""
    model, x = nn.Sequential(nn.Linear(64, 16)), torch.randn(5, 64)
    for recipe, provider in [("fp8_blockwise", "aten"), ("fp8_rowwise", "deep_gemm")]:
        with torch.no_grad():
            captured, out = run(model, plan_for(recipe, model, x, provider=provider, target="h100"), x)
            assert sqnr_db(out, model(x)) > 20
        assert list(did(captured).values()) == [f"{recipe} by emulated here ({provider} on h100)"]
    with torch.no_grad():
        captured, _ = run(model, plan_for("fp8_rowwise", model, x, target="h100"), x)
    assert list(did(captured).values()) == ["fp8_rowwise by aten"]


def test_what_the_provider_cannot_run_on_the_plan_s_own_hardware_is_left_alone(plan_for):
    """No batched `_int_mm`: emulating it would be slow, and nobody asked for it."""
    fn = lambda x: x @ x.transpose(1, 2)  # noqa: E731
    x = torch.randn(3, 5, 64)
    captured, out = run(fn, plan_for("int8_rowwise", fn, x), x)
    assert torch.equal(out, fn(x)) and not did(captured)
    (reason,) = why_not(captured).values()
    assert reason.startswith("int8_rowwise/aten cannot run here: _int_mm takes two matrices")


def test_sites_left_alone_say_why(plan_for):
    model, x = Three(), torch.randn(5, 32)
    with torch.no_grad():
        plan = plan_for("int8_rowwise", model, x)
        first, second, third = plan.decisions
        decisions = {
            first: plan.decisions[first],
            second: replace(plan.decisions[second], chosen=KEPT, reason="too inaccurate: MERE 0.3 > 0.2"),
        }
        captured, _ = run(model, replace(plan, decisions=decisions), x)
    assert list(did(captured)) == [first]
    assert why_not(captured) == {
        second: "too inaccurate: MERE 0.3 > 0.2",
        third: "the plan has no decision for this site",
    }
    assert captured.ops("after")["aten.addmm"] == 2
    assert loka_ops(captured) == {"quantize": 2, "scaled_gemm": 1}


def test_a_kept_site_without_a_reason_is_kept(plan_for):
    """A plan edited by hand may give none."""
    model, x = nn.Sequential(nn.Linear(32, 16)), torch.randn(5, 32)
    with torch.no_grad():
        plan = plan_for("int8_rowwise", model, x)
        decisions = {key: replace(d, chosen=KEPT, reason="") for key, d in plan.decisions.items()}
        captured, _ = run(model, replace(plan, decisions=decisions), x)
    assert speak_of(why_not(captured).values(), "keeps")
    assert captured.ops("after")["aten.addmm"] == 1


def test_a_plan_never_speaks_of_another_gemm(plan_for):
    small, wide, x = nn.Sequential(nn.Linear(32, 16)), nn.Sequential(nn.Linear(32, 24)), torch.randn(5, 32)
    with torch.no_grad():
        captured, _ = run(wide, plan_for("int8_rowwise", small, x), x)
    assert speak_of(why_not(captured).values(), "no decision")


def test_integers_stay_as_they_are(plan_for):
    fn = lambda x: x @ x.t()  # noqa: E731
    x = torch.randint(0, 1000, (3, 4))
    captured, out = run(fn, plan_for("int8_rowwise", fn, x), x)
    assert torch.equal(out, fn(x))
    assert speak_of(why_not(captured).values(), "torch.int64")


def test_recipes_may_differ_by_role(plan_for):
    model, x = nn.Sequential(nn.Linear(32, 16)), torch.randn(5, 32, requires_grad=True)
    plan = plan_for("int8_rowwise", model, x, only=lambda site: site.role != "grad_weight")
    recipes = {"output": "int8_rowwise", "grad_input": "bf16"}
    decisions = {
        key: replace(d, chosen=Candidate(recipes[d.site.role], "aten")) if d.lowered else d
        for key, d in plan.decisions.items()
    }
    captured, out = run(model, Plan("cpu", decisions), x)
    assert loka_ops(captured) == {"quantize": 2, "scaled_gemm": 2}
    assert captured.ops("after")["aten.mm"] == 1
    out.square().sum().backward()
    got = [p.grad.clone() for p in (x, *model.parameters())]
    model.zero_grad()
    x.grad = None
    model(x).square().sum().backward()
    assert all(sqnr_db(a, p.grad) > 25 for a, p in zip(got, (x, *model.parameters()), strict=True))
