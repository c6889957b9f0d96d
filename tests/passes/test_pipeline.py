"""The pipeline as a whole: what it leaves alone, that it repeats itself, and that any small model survives it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from loka_compile.passes import PIPELINE
from loka_compile.spec.decision import KEPT
from loka_compile.spec.options import pass_names
from loka_compile.spec.plan import parse_plan
from tests.helpers import compile_op_by_op, sqnr_db

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

# Least SQNR of a product of normal operands; the recipes' own error, not ours.
EXPECTED_DB = {"bf16": 44, "fp16": 60, "int8_rowwise": 36, "fp8_tensorwise": 24, "fp8_rowwise": 24, "fp8_blockwise": 24}


class Mlp(nn.Module):
    """Three GEMMs of one x, a norm, a residual, a product of activations."""

    def __init__(self, width=64, dtype=torch.float32):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width, dtype=dtype) for _ in range(3))
        self.norm = nn.LayerNorm(width, dtype=dtype)
        self.out = nn.Linear(width, 32, bias=False, dtype=dtype)

    def forward(self, x):
        gate = torch.sigmoid(self.q(x) * self.k(x))
        return self.out(self.norm(gate * self.v(x) + x))


def kept(plan):
    return replace(plan, decisions={k: replace(d, chosen=KEPT, reason="kept") for k, d in plan.decisions.items()})


def test_names_and_selection():
    assert set(PIPELINE.names) == set(pass_names())
    selected = PIPELINE.select({"precision": False, "other": False})
    assert selected.names == tuple(name for name in PIPELINE.names if name != "precision")
    assert PIPELINE.select({}) == PIPELINE


@pytest.mark.parametrize("training", [False, True])
def test_nothing_to_lower_leaves_the_code_alone(plan_for, training):
    def model(x, w):
        dead = x @ w  # a GEMM nobody needs stays Inductor's to remove  # noqa: F841
        return (x @ w).sin()

    x, w = torch.randn(5, 8), torch.randn(8, 4, requires_grad=training)
    plan = plan_for("bf16", model, x, w)
    for nothing in (kept(plan), replace(plan, decisions={})):
        captured = compile_op_by_op(model, nothing)
        captured(x, w)
        off = compile_op_by_op(model, plan, pipeline=PIPELINE.select(dict.fromkeys(PIPELINE.names, False)))
        off(x, w)
        assert captured.code("before") == captured.code("after")
        for graph in ("forward", "backward") if training else ("inference",):
            assert captured.code(graph) == off.code(graph)
        assert not any(result.rewrites for result in captured.results.values())


@pytest.mark.parametrize("recipe", ["int8_rowwise", "fp8_blockwise"])
def test_equal_plans_give_equal_bytes(plan_for, recipe):
    model, x = Mlp(), torch.randn(17, 64)
    plan = plan_for(recipe, model, x)
    codes = []
    for each in (plan, plan, parse_plan(plan.to_json())):
        captured = compile_op_by_op(model, each)
        captured(x).sum().backward()
        codes.append([captured.code(graph) for graph in ("after", "forward", "backward")])
    assert codes[0] == codes[1] == codes[2]
    assert "loka" in codes[0][0]


@pytest.mark.parametrize(
    ("recipe", "dynamic"), [*((r, True) for r in EXPECTED_DB), ("int8_rowwise", False), ("fp8_tensorwise", False)]
)
def test_a_training_step_and_inference_stay_close(plan_for, recipe, dynamic):
    torch.manual_seed(0)
    model = Mlp()
    x = torch.randn(257, 64, requires_grad=True)
    if dynamic:
        torch._dynamo.mark_dynamic(x, 0)
    plan = plan_for(recipe, model, x)
    captured = compile_op_by_op(model, plan)
    inputs = [x, *model.parameters()]
    weight = torch.randn(257, 32)
    expected = torch.autograd.grad((model(x) * weight).sum(), inputs)
    got = torch.autograd.grad((captured(x) * weight).sum(), inputs)
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert sqnr_db(a, b) > EXPECTED_DB[recipe] - 8
    with torch.no_grad():
        assert sqnr_db(captured(x), model(x)) > EXPECTED_DB[recipe] - 4


@pytest.mark.parametrize("recipe", ["int8_rowwise", "fp8_rowwise", "fp8_blockwise"])
def test_a_dynamic_batch_compiles_once(plan_for, recipe):
    """No guard splits the sizes above 128 rows: not at multiples of 16 or 128, not at primes."""
    model = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 16))
    x = torch.randn(257, 48)
    torch._dynamo.mark_dynamic(x, 0)
    captured = compile_op_by_op(model, plan_for(recipe, model, x))
    for rows in (257, 256, 384, 131, 1000):
        x = torch.randn(rows, 48)
        torch._dynamo.mark_dynamic(x, 0)
        model.zero_grad()
        out = captured(x)
        assert sqnr_db(out, model(x)) > 20
        out.sum().backward()
        assert model[0].weight.grad.shape == (64, 48)
    assert captured.compilations == 1


@pytest.mark.parametrize(
    ("dtype", "recipe"),
    [(torch.bfloat16, r) for r in ("int8_rowwise", "fp8_tensorwise", "fp8_blockwise", "bf16", "fp16")]
    + [(torch.float16, r) for r in ("int8_rowwise", "bf16")],
)
def test_half_precision_models_keep_their_dtypes(plan_for, dtype, recipe):
    torch.manual_seed(0)
    model, x = Mlp(dtype=dtype), torch.randn(33, 64, dtype=dtype, requires_grad=True)
    captured = compile_op_by_op(model, plan_for(recipe, model, x))
    out = captured(x)
    assert out.dtype == dtype
    (grad,) = torch.autograd.grad(out.float().square().sum(), x)
    assert grad.dtype == dtype
    assert sqnr_db(grad, torch.autograd.grad(model(x).float().square().sum(), x)[0]) > 15
    with torch.no_grad():
        out = captured(x)
        assert out.dtype == dtype
        assert sqnr_db(out, model(x)) > 20


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["linear", "bias", "act", "residual", "reshape", "twice"]), st.sampled_from([3, 8, 17, 32])
    ),
    min_size=1,
    max_size=5,
)


class Random(nn.Module):
    """A small model made from a list of steps."""

    def __init__(self, steps, width=12):
        super().__init__()
        self.steps, self.layers = steps, nn.ModuleList()
        for kind, size in steps:
            out = width if kind in ("act", "residual", "reshape") else size
            self.layers.append(nn.Linear(width, out, bias=kind != "linear"))
            width = out

    def forward(self, x):
        for (kind, _), layer in zip(self.steps, self.layers, strict=True):
            if kind == "act":
                x = torch.nn.functional.gelu(x)
            elif kind == "reshape":
                x = x.unsqueeze(1).expand(-1, 2, -1).reshape(-1, 2, x.shape[-1]).sum(1)
            elif kind == "residual":
                x = x + layer(x)
            elif kind == "twice":
                x = layer(x) + layer(x.relu())
            else:
                x = layer(x)
        return x


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS, recipe=st.sampled_from(sorted(EXPECTED_DB)), rows=st.sampled_from([1, 2, 31]))
def test_random_models(plan_for, steps, recipe, rows):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = Random(steps), torch.randn(rows, 12, requires_grad=True)
    inputs = [x, *(p for p in model.parameters())]
    grads = lambda out: torch.autograd.grad(out.square().sum(), inputs, allow_unused=True)  # noqa: E731
    captured = compile_op_by_op(model, plan_for(recipe, model, x))
    out, expected = captured(x), model(x)
    assert out.shape == expected.shape
    scale = expected.abs().max()
    # Each step may add the recipe's error; values that nearly cancel keep it, so it is measured against the largest.
    assert (out - expected).abs().max() <= 10 ** (-EXPECTED_DB[recipe] / 20) * 8 * len(steps) * scale
    for a, b in zip(grads(out), grads(expected), strict=True):
        assert (a is None) == (b is None)
        assert a is None or (a.shape == b.shape and a.isfinite().all())
