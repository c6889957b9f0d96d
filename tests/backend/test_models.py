"""Shapes of models and of inputs: graph breaks, tied weights, odd sizes, empty batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import loka_compile as loka
from loka_compile.probe.score import emulate, sqnr_db
from loka_compile.spec.decision import KEPT
from loka_compile.spec.recipes import RECIPES
from tests.backend.models import AGREE_DB, MLP, SIGNED, Linear, compiled_with, emulated, emulated_linear


def test_graph_breaks_make_two_graphs_of_one_plan(plan_for, op_by_op):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(32, 32)

        def forward(self, x):
            x = self.fc(x).relu()
            torch._dynamo.graph_break()
            return self.fc(x)

    model, x = Broken(), torch.randn(5, 32)
    plan = plan_for("int8_rowwise", model, x)
    assert any("@" in key for key in plan.decisions)  # the same module name on both sides
    second = next(key for key in plan.decisions if key.startswith("fc#0:output@"))
    half = replace(plan, decisions={**plan.decisions, second: replace(plan.decisions[second], chosen=KEPT)})
    with torch.no_grad():
        hidden = emulated_linear("int8_rowwise", x, model.fc.weight, model.fc.bias).relu()
        for given, end in (
            (plan, emulated_linear("int8_rowwise", hidden, model.fc.weight, model.fc.bias)),
            (half, model.fc(hidden)),
        ):
            compiled = compiled_with(given, model)
            torch.testing.assert_close(compiled(x), end)
            assert len(loka.records(compiled)) == 2
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled_with(plan, model, fullgraph=True)(x)


def test_tied_weights(plan_for, op_by_op):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = nn.Linear(32, 16, bias=False), nn.Linear(32, 16, bias=False)
            self.decoder.weight = self.encoder.weight

        def forward(self, x):
            return self.encoder(x) @ self.encoder.weight + self.decoder(x).sum(1, keepdim=True)

    model, x = Tied(), torch.randn(5, 32)
    compiled = compiled_with(plan_for("int8_rowwise", model, x), model)

    def expected():
        w = model.encoder.weight
        once = emulated_linear("int8_rowwise", x, w)
        return emulate(RECIPES["int8_rowwise"], once, w) + once.sum(1, keepdim=True)

    with torch.no_grad():
        torch.testing.assert_close(compiled(x), expected())
        model.decoder.weight.mul_(3)
        torch.testing.assert_close(compiled(x), expected())
    reference = torch.autograd.grad(model(x).square().sum(), model.encoder.weight)[0]
    gradient = torch.autograd.grad(compiled(x).square().sum(), model.encoder.weight)[0]
    assert sqnr_db(gradient, reference) > 30


def test_a_module_called_twice_is_two_sites(plan_for, op_by_op):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(32, 32)

        def forward(self, x):
            return self.fc(self.fc(x))

    model, x = Twice(), torch.randn(5, 32)
    with torch.no_grad():
        plan = plan_for("int8_rowwise", model, x, only=lambda site: "#1" in site.key)
        assert list(plan.decisions) == ["fc#0:output", "fc#1:output"]
        expected = emulated_linear("int8_rowwise", model.fc(x), model.fc.weight, model.fc.bias)
        torch.testing.assert_close(compiled_with(plan, model)(x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("recipe", SIGNED)
def test_half_precision_models(recipe, dtype, plan_for, op_by_op):
    model, x = MLP(32, 64, 48).to(dtype), torch.randn(5, 32, dtype=dtype)
    compiled = compiled_with(plan_for(recipe, model, x), model)
    out, seed = compiled(x), torch.randn(5, 48, dtype=dtype)
    gradients = torch.autograd.grad(out, list(model.parameters()), seed)
    expected = emulated(recipe, model, x)
    wanted = torch.autograd.grad(expected, list(model.parameters()), seed)
    assert out.dtype == dtype and sqnr_db(out, expected) > 30
    for gradient, want in zip(gradients, wanted, strict=True):
        assert gradient.dtype == dtype and sqnr_db(gradient, want) > 25
    with torch.no_grad():
        assert compiled(x).dtype == dtype and sqnr_db(compiled(x), expected) > 30


@pytest.mark.parametrize("recipe", ["bf16", "int8_rowwise", "fp8_tensorwise", "fp8_rowwise", "fp8_blockwise"])
@pytest.mark.parametrize("m, k, n", [(1, 1, 1), (1, 40, 3), (3, 1, 5), (40, 7, 1), (5, 17, 31), (2, 130, 129)])
def test_sizes_that_are_no_multiples_of_anything(recipe, m, k, n, plan_for, op_by_op):
    model, x = Linear(k, n), torch.randn(m, k)
    with torch.no_grad():
        compiled = compiled_with(plan_for(recipe, model, x, target="h100"), model)
        expected = emulated_linear(recipe, x, model.fc.weight, model.fc.bias)
        torch.testing.assert_close(compiled(x), expected, rtol=1e-2 if recipe == "bf16" else 1e-4, atol=1e-3)


@pytest.mark.parametrize("recipe", [pytest.param(x, marks=[pytest.mark.slow] * (x != "int8_rowwise")) for x in SIGNED])
def test_an_empty_batch_and_a_batch_of_one(recipe, plan_for, op_by_op):
    model = MLP(32, 64, 48)
    compiled = compiled_with(plan_for(recipe, model, torch.randn(5, 32)), model)
    for batch in (0, 1, 4):
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                x = torch.randn(batch, 32)
                out = compiled(x)
            assert out.shape == (batch, 48) and out.requires_grad == grad
            assert sqnr_db(out, emulated(recipe, model, x)) > AGREE_DB
            if grad:
                model.zero_grad()
                out.sum().backward()
                assert all(p.grad.isfinite().all() for p in model.parameters())
                assert batch or all((p.grad == 0).all() for p in model.parameters())


def test_an_empty_batch_and_a_batch_of_one_in_generated_code(plan_for):
    model = Linear()
    compiled = compiled_with(plan_for("int8_rowwise", model, torch.randn(5, 32)), model)
    with torch.no_grad():
        for batch in (0, 1):
            x = torch.randn(batch, 32)
            expected = emulated_linear("int8_rowwise", x, model.fc.weight, model.fc.bias)
            torch.testing.assert_close(compiled(x), expected)


def test_three_dimensional_inputs(plan_for, op_by_op):
    model, x = MLP(32, 64, 48), torch.randn(3, 5, 32)
    compiled = compiled_with(plan_for("int8_rowwise", model, x), model)
    with torch.no_grad():
        assert sqnr_db(compiled(x), emulated("int8_rowwise", model, x.flatten(0, 1)).view(3, 5, 48)) > AGREE_DB


def test_inputs_that_are_not_contiguous(plan_for, op_by_op):
    model, x = Linear(), torch.randn(32, 10).t()[::2]
    with torch.no_grad():
        for recipe in ("int8_rowwise", "fp8_rowwise", "fp8_tensorwise"):
            compiled = compiled_with(plan_for(recipe, model, x), model)
            torch.testing.assert_close(compiled(x), emulated_linear(recipe, x, model.fc.weight, model.fc.bias))
