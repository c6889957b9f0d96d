"""Modes of torch.compile: recipes, dynamic sizes, grad modes, autocast, functions and methods."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import loka_compile as loka
from loka_compile.probe.score import sqnr_db
from tests.backend.models import (
    AGREE_DB,
    MLP,
    SIGNED,
    Linear,
    Ranker,
    compiled_with,
    emulated,
    emulated_linear,
    two_dimensional,
)


@pytest.mark.parametrize("recipe", SIGNED)
def test_a_model_in_each_recipe_is_as_accurate_as_the_recipe(recipe, plan_for, op_by_op):
    model, ids, dense = Ranker(), torch.randint(50, (33,)), torch.randn(33, 16)
    expected, exact = emulated(recipe, model, ids, dense), model(ids, dense)
    compiled = compiled_with(plan_for(recipe, model, ids, dense, only=two_dimensional), model, fullgraph=True)
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            out = compiled(ids, dense)
        assert sqnr_db(out, expected) > AGREE_DB
        assert abs(sqnr_db(out, exact) - sqnr_db(expected, exact)) < 1  # in the recipe, no better and no worse


@pytest.mark.parametrize("recipe", ["int8_rowwise", "fp8_rowwise"])
def test_generated_code_computes_what_the_recipe_says(recipe, plan_for):
    model, x = MLP(32, 64, 48), torch.randn(13, 32)
    plan = plan_for(recipe, model, x)
    with torch.no_grad():
        out = compiled_with(plan, model, fullgraph=True)(x)
    assert sqnr_db(out, emulated(recipe, model, x)) > AGREE_DB
    assert 20 < sqnr_db(out, model(x)) < 45


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_dynamic_batch_sizes_share_one_graph(training, plan_for, op_by_op):
    model = MLP(32, 64, 48)
    compiled = compiled_with(plan_for("int8_rowwise", model, torch.randn(6, 32)), model, dynamic=True, fullgraph=True)
    with torch.set_grad_enabled(training):
        compiled(torch.randn(11, 32))
        with torch.compiler.set_stance("fail_on_recompile"):
            for batch in (2, 3, 7, 13, 97):
                x = torch.randn(batch, 32)
                out = compiled(x)
                assert sqnr_db(out, emulated("int8_rowwise", model, x)) > AGREE_DB
                if training:
                    out.sum().backward()
    assert all(not torch.isnan(p.grad).any() for p in model.parameters() if training)


def test_dynamic_batch_sizes_share_one_generated_code(plan_for):
    model = Linear()
    compiled = compiled_with(plan_for("int8_rowwise", model, torch.randn(6, 32)), model, dynamic=True, fullgraph=True)
    with torch.no_grad():
        compiled(torch.randn(11, 32))
        with torch.compiler.set_stance("fail_on_recompile"):
            for batch in (2, 3, 13, 97):
                x = torch.randn(batch, 32)
                assert sqnr_db(compiled(x), emulated_linear("int8_rowwise", x, model.fc.weight, model.fc.bias)) > 80


def test_a_batch_size_marked_dynamic_stays_dynamic(plan_for, op_by_op):
    model, x = Linear(), torch.randn(11, 32)
    plan = plan_for("fp8_rowwise", model, x)
    torch._dynamo.mark_dynamic(x, 0)  # it would be an error to specialise it
    compiled = compiled_with(plan, model)
    with torch.no_grad():
        compiled(x)
        with torch.compiler.set_stance("fail_on_recompile"):
            compiled(torch.randn(17, 32))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, contextlib.nullcontext])
@pytest.mark.parametrize("created_in", [contextlib.nullcontext, torch.inference_mode])
def test_grad_modes(mode, created_in, plan_for, op_by_op):
    if created_in is torch.inference_mode and mode is contextlib.nullcontext:
        pytest.skip("eager refuses too: inference tensors cannot be saved for backward")
    with created_in():
        model = MLP(32, 64, 48)
    x = torch.randn(5, 32)
    with torch.no_grad():
        plan, expected = plan_for("int8_rowwise", model, x), emulated("int8_rowwise", model, x)
    compiled = compiled_with(plan, model)
    for _ in range(2):
        with mode():
            out = compiled(x)
        assert sqnr_db(out, expected) > AGREE_DB
        assert out.is_inference() == (mode is torch.inference_mode)
        assert out.requires_grad == (mode is contextlib.nullcontext)


def test_generated_code_under_inference_mode(plan_for):
    with torch.inference_mode():
        model = Linear()
        x = torch.randn(5, 32)
    with torch.inference_mode():
        compiled = compiled_with(plan_for("int8_rowwise", model, x), model)
        assert sqnr_db(compiled(x), emulated_linear("int8_rowwise", x, model.fc.weight, model.fc.bias)) > 80


def test_autocast_decides_the_sites_dtype(plan_for, op_by_op):
    model, x = MLP(32, 64, 48), torch.randn(5, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plan = plan_for("int8_rowwise", model, x)
        assert {decision.site.dtype for decision in plan.decisions.values()} == {torch.bfloat16}
        out = compiled_with(plan, model)(x)
        assert out.dtype == torch.bfloat16
    assert sqnr_db(out, model(x)) > 30


def test_a_plain_function_with_weights_as_arguments(plan_for, op_by_op):
    def score(x, w, b):
        return (F.linear(x, w) + b).relu()

    x, w, b = torch.randn(5, 32), torch.randn(48, 32), torch.randn(48)
    compiled = compiled_with(plan_for("int8_rowwise", score, x, w, b), score)
    for weight in (w, nn.Parameter(torch.randn(48, 32)), nn.Parameter(torch.randn(48, 32))):
        with torch.no_grad():
            for _ in range(2):
                expected = emulated_linear("int8_rowwise", x, weight, b).relu()
                torch.testing.assert_close(compiled(x, weight, b), expected)
                weight.mul_(2)


def test_a_linear_on_its_own_and_a_compiled_method(plan_for, op_by_op):
    model, x = nn.Linear(32, 48), torch.randn(5, 32)
    plan = plan_for("int8_rowwise", model, x)
    with torch.no_grad():
        expected = emulated_linear("int8_rowwise", x, model.weight, model.bias)
        torch.testing.assert_close(compiled_with(plan, model)(x), expected)
        outer = Linear()
        plan = plan_for("int8_rowwise", outer, x)
        expected = emulated_linear("int8_rowwise", x, outer.fc.weight, outer.fc.bias)
        outer.compile(backend="loka", options={"plan": plan})
        torch.testing.assert_close(outer(x), expected)
        assert loka.plan(outer) == plan
