"""Training: gradients are those of the recipes, whatever is frozen."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import loka_compile as loka
from loka_compile.probe.score import sqnr_db
from tests.backend.models import AGREE_DB, MLP, SIGNED, Linear, compiled_with, emulated


@pytest.mark.parametrize("recipe", SIGNED)
def test_gradients_are_those_of_the_emulation(recipe, plan_for, op_by_op):
    model, x, seed = Linear(64, 48), torch.randn(16, 64, requires_grad=True), torch.randn(16, 48)
    to = [x, *model.parameters()]
    gradients = torch.autograd.grad(compiled_with(plan_for(recipe, model, x), model)(x), to, seed)
    wanted, exact = (torch.autograd.grad(out, to, seed) for out in (emulated(recipe, model, x), model(x)))
    for gradient, want, true in zip(gradients, wanted, exact, strict=True):
        assert sqnr_db(gradient, want) > 60
        assert sqnr_db(gradient, true) > 20


@pytest.mark.parametrize("recipe", ["int8_rowwise", pytest.param("fp8_tensorwise", marks=pytest.mark.slow)])
def test_training_in_generated_code(recipe, plan_for):
    model, x, seed = MLP(32, 64, 1), torch.randn(16, 32), torch.randn(16, 1)  # a width of 1, as every ranker ends in
    model.layers[1].bias.data.fill_(3)
    plan = plan_for(recipe, model, x, target="h100")  # FP8 with a contraction of 1 has no kernel here: emulated
    gradients = torch.autograd.grad(compiled_with(plan, model)(x), list(model.parameters()), seed)
    wanted = torch.autograd.grad(emulated(recipe, model, x), list(model.parameters()), seed)
    for gradient, want in zip(gradients, wanted, strict=True):
        assert sqnr_db(gradient, want) > AGREE_DB


def test_partly_frozen_parameters_train_the_others(plan_for, op_by_op):
    model, x = MLP(32, 64, 48), torch.randn(16, 32)
    plan = plan_for("int8_rowwise", model, x)
    model.layers[0].requires_grad_(False)
    compiled = compiled_with(plan, model)
    compiled(x).square().sum().backward()
    assert all(p.grad is None for p in model.layers[0].parameters())
    gradient = model.layers[1].weight.grad.clone()
    model.zero_grad()
    model(x).square().sum().backward()
    assert sqnr_db(gradient, model.layers[1].weight.grad) > 30


def test_all_parameters_frozen_is_an_inference_graph(plan_for, op_by_op):
    model, x = MLP(32, 64, 48).requires_grad_(False), torch.randn(16, 32)
    compiled = compiled_with(plan_for("int8_rowwise", model, x), model)
    with torch.enable_grad():
        assert not compiled(x).requires_grad
        before = model.layers[0].weight.clone()
        model.layers[0].weight.data.mul_(2)
    assert not torch.equal(before, model.layers[0].weight)
    assert sqnr_db(compiled(x), emulated("int8_rowwise", model, x)) > AGREE_DB
    assert [record.training for record in loka.records(compiled)] == [False]


def test_training_then_evaluation_then_training(plan_for, op_by_op):
    model, x, y = MLP(32, 64, 1), torch.randn(64, 32), torch.randn(64, 1)
    compiled = compiled_with(plan_for("int8_rowwise", model, x), model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for _ in range(4):
        model.train()
        for _ in range(2):
            optimizer.zero_grad()
            loss = F.mse_loss(compiled(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            assert sqnr_db(compiled(x), emulated("int8_rowwise", model, x)) > AGREE_DB
    assert losses[-1] < losses[0]
    assert [record.training for record in loka.records(compiled)] == [True, False]


def test_double_backward_is_refused_not_wrong(plan_for, op_by_op):
    model, x = Linear(), torch.randn(5, 32, requires_grad=True)
    out = compiled_with(plan_for("int8_rowwise", model, x), model)(x)
    with pytest.raises(RuntimeError, match=r"donated buffer|double backward"):
        torch.autograd.grad(out.sum(), x, create_graph=True)[0].sum().backward()


@torch._functorch.config.patch(donated_buffer=True)
def test_a_graph_that_was_raced_may_be_retained(tmp_path, monkeypatch):
    monkeypatch.setenv("LOKA_CACHE_DIR", str(tmp_path))
    model, x = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)), torch.randn(256, 32)
    with loka.probe(model) as probe:
        model(x).sum().backward()
    compiled = torch.compile(model, backend="loka", options={"profile": probe.profile, "min_speedup": 0})
    loss = compiled(x).square().mean()
    for _ in range(2):
        loss.backward(retain_graph=True)
