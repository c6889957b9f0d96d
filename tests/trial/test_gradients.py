"""Bounding gradients: a step down at a time until they are within the budget, on real gradients, no trace left."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import loka_compile as loka
from loka_compile.spec.decision import Candidate
from loka_compile.trial import gradients, planning
from loka_compile.trial.gradients import gradient_error, step_of

INF, NAN = math.inf, math.nan
INT8, BF16 = Candidate("int8_rowwise", "aten"), Candidate("bf16", "aten")
ANY_SPEED = {"target": "h100", "min_speedup": 0, "race": False, "max_probe_overhead": 0}


class Deep(nn.Module):
    """ReLU upon ReLU: where a small error decides whether a gradient passes."""

    def __init__(self, width=64, layers=4):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.head = nn.Linear(width, 1)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x).squeeze(-1)


def made(model, call, x, loss):
    model.zero_grad()
    loss(call(x)).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def error_of(model, compiled, x, loss):
    return gradient_error(made(model, compiled, x, loss), made(model, model, x, loss))


def batch(seed, rows=256, width=64):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def away_from_zero(out):
    """Rows whose targets lie on both sides: gradients that nearly cancel over the batch."""
    return (out - torch.linspace(-1, 1, len(out))).square().mean()


# ---------------------------------------------------------------- the bound


@pytest.mark.parametrize("learned", ["online", "from a profile"])
def test_gradients_are_held_where_outputs_alone_would_not_hold_them(
    learned, fresh_dynamo, op_by_op, tmp_path, monkeypatch
):
    monkeypatch.setenv("LOKA_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    model = Deep()
    given = {**ANY_SPEED, "recipes": ("int8_rowwise",), "max_output_error": INF}
    if learned == "from a profile":
        with loka.probe(model) as probe:
            away_from_zero(model(batch(0, 2048))).backward()
        given["profile"] = probe.profile
    errors, plans = {}, {}
    for budget in (INF, 0.05):
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="loka", options={**given, "max_gradient_error": budget})
        for seed in range(5):  # the last one is none that the plan was made on
            errors[budget] = error_of(model, compiled, batch(seed, 2048), away_from_zero)
        plans[budget] = loka.plan(compiled)
    assert errors[INF] > 0.06 and errors[0.05] < 0.05, errors
    changed = [key for key, d in plans[0.05].decisions.items() if d.chosen != plans[INF].decisions[key].chosen]
    forward = [key for key in changed if key.endswith("output")]
    assert plans[0.05].lowered and forward  # those go first whose errors the gradients show most
    said = [plans[0.05].decisions[key] for key in changed]
    assert all("gradients were off by" in each.reason and "(budget 5.00%)" in each.reason for each in said)
    assert all(dict(each.rejected)[INT8] == each.reason for each in said)
    assert "gradients were off by" in str(loka.explain(compiled))


def test_a_gradient_budget_of_zero_keeps_all_and_infinity_asks_nothing(monkeypatch, fresh_dynamo, op_by_op):
    model, x = Deep(layers=1), batch(0)
    with loka.probe(model) as probe:
        away_from_zero(model(x)).backward()
    given = {**ANY_SPEED, "profile": probe.profile, "recipes": ("int8_rowwise",), "max_output_error": INF}
    compiled = torch.compile(model, backend="loka", options={**given, "max_gradient_error": 0})
    assert error_of(model, compiled, x, away_from_zero) < 1e-6 and not loka.plan(compiled).lowered

    torch._dynamo.reset()
    monkeypatch.setattr(planning, "step_of", None)  # it is not even traced
    compiled = torch.compile(model, backend="loka", options={**given, "max_gradient_error": INF})
    made(model, compiled, x, away_from_zero)
    assert loka.plan(compiled).lowered


def test_in_inference_there_is_nothing_to_hold(monkeypatch, fresh_dynamo, op_by_op):
    monkeypatch.setattr(planning, "step_of", None)
    model, x = Deep(layers=1), batch(0)
    compiled = torch.compile(model, backend="loka", options={**ANY_SPEED, "measure_calls": 0})
    with torch.no_grad():
        compiled(x)
    assert loka.plan(compiled).lowered


def test_a_given_plan_is_followed_whatever_its_gradients(plan_for, fresh_dynamo, op_by_op):
    model, x = Deep(layers=1), batch(0)
    plan = plan_for("int8_rowwise", model, x)
    compiled = torch.compile(model, backend="loka", options={"plan": plan, "max_gradient_error": 0.0})
    made(model, compiled, x, away_from_zero)
    assert loka.plan(compiled) == plan


# ---------------------------------------------------------------- real gradients


def test_online_gradients_of_outputs_are_those_that_were_seen(fresh_dynamo, op_by_op, tmp_path, monkeypatch):
    monkeypatch.setenv("LOKA_CACHE_DIR", str(tmp_path))
    steps, original = [], gradients.step_of

    def kept(*args):
        steps.append(original(*args))
        return steps[-1]

    monkeypatch.setattr(planning, "step_of", kept)
    model = Deep(layers=1)
    compiled = torch.compile(model, backend="loka", options={**ANY_SPEED, "recipes": ("bf16",)})
    weights = torch.linspace(0, 3, 256)
    for seed in range(4):
        (compiled(batch(seed)) * weights * (seed + 1)).sum().backward()
    (step,) = steps
    assert torch.equal(step.args[-1], weights * 3)  # of the third call, the last that was measured
    reference = step.reference
    model.zero_grad()
    (model(batch(3)) * weights * 3).sum().backward()
    wanted = {tuple(p.shape): p.grad for p in model.parameters()}
    found = {tuple(g.shape): g for g in reference if g is not None}
    assert found.keys() >= wanted.keys()
    for shape, gradient in wanted.items():
        torch.testing.assert_close(found[shape], gradient)


def test_gradients_of_a_smaller_batch_serve_a_larger_one(fresh_dynamo):
    node = torch.fx.Graph().placeholder("tangents_1")
    node.meta["val"] = torch.empty(5, 2)
    seen = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert torch.equal(gradients._tangent(node, seen), seen[[0, 1, 0, 1, 0]])
    for other in (None, torch.ones(5, 3), torch.ones(2, 2, dtype=torch.bfloat16), torch.ones(0, 2)):
        drawn = gradients._tangent(node, other)
        assert drawn.shape == (5, 2) and drawn.dtype == torch.float32 and drawn.std() > 0
        assert torch.equal(drawn, gradients._tangent(node, other))


# ---------------------------------------------------------------- no trace


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.fc, self.norm = nn.Embedding(9, 32), nn.Linear(32, 16), nn.BatchNorm1d(16)

    def forward(self, ids, x):
        x.add_(1)
        return self.norm(nn.functional.dropout(self.fc(self.table(ids) + x))), x.sum()


def test_a_step_leaves_inputs_buffers_gradients_hooks_and_random_state(fresh_dynamo):
    torch.manual_seed(0)
    model, x, ids = Noisy(), torch.randn(8, 32), torch.arange(8)
    called, seen = [], []
    for parameter in model.parameters():
        parameter.register_hook(called.append)
        parameter.grad = torch.ones_like(parameter)
    before = [value.clone() for value in (x, *model.state_dict().values())]

    def backend(gm, inputs):
        state = torch.get_rng_state()
        step = step_of(gm, inputs, {})
        first, second = step.reference, step.gradients(lambda graph: None)
        assert gradient_error(first, second) == 0 and [site.role for site in step.sites].count("output") == 1
        assert sum(g is not None for g in first) >= len(list(model.parameters()))
        assert torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled()
        for value, old in zip((x, *model.state_dict().values()), before, strict=True):
            assert torch.equal(value, old)
        seen.append(first)
        return gm.forward

    torch.compile(model, backend=backend)(ids, x)
    assert seen and not called and all(bool((p.grad == 1).all()) for p in model.parameters())


def test_a_graph_for_any_batch(fresh_dynamo, op_by_op):
    model = Deep(layers=2)
    options = {**ANY_SPEED, "measure_calls": 0, "recipes": ("int8_rowwise",), "max_gradient_error": 0.2}
    compiled = torch.compile(model, backend="loka", dynamic=True, options=options)
    for rows in (24, 31):
        assert error_of(model, compiled, batch(0, rows), away_from_zero) < 0.2
    assert loka.plan(compiled).lowered


def test_a_loss_in_the_graph_and_an_input_with_a_gradient(fresh_dynamo, op_by_op):
    model, x = Deep(layers=2), batch(0).requires_grad_()
    options = {**ANY_SPEED, "measure_calls": 0, "recipes": ("int8_rowwise",), "max_gradient_error": 0.2}

    @torch.compile(backend="loka", options=options)
    def loss(x):
        return away_from_zero(model(x))

    loss(x).backward()
    got, x.grad = x.grad, None
    away_from_zero(model(x)).backward()
    assert gradient_error([got], [x.grad]) < 0.2
    assert loka.plan(loss).lowered


def test_what_needs_no_gradient_has_no_step(fresh_dynamo):
    model, found = Deep(layers=1), []

    def backend(gm, inputs):
        found.append(step_of(gm, inputs, {}))
        return gm.forward

    torch.compile(lambda x: model(x).detach(), backend=backend)(batch(0))
    assert found == [None]
