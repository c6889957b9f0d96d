"""The backend end to end: whatever model and mode it meets, the result is right or the error is clear.

Most tests run the rewritten graphs op by op (`op_by_op`): all of a compilation but Inductor's code generation. Those
that take `generated` run real generated code.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import loka_compile as loka
from loka_compile.probe.score import emulate, sqnr_db
from loka_compile.spec.plan import KEPT
from loka_compile.spec.recipes import RECIPES

SIGNED = [name for name, recipe in RECIPES.items() if not recipe.unsigned]
"""Recipes for operands of any sign; tests/kernels/test_unsigned.py has the others."""

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

AGREE_DB = 40.0
"""A sum in another order moves a value over a rounding edge now and then, so two runs of one recipe agree in
decibels, not bit by bit; 29 dB is what one product in e4m3 keeps."""


class EmulatedLinear(torch.autograd.Function):
    """A linear whose three products are in a recipe's numerics: what a compiled one must agree with."""

    @staticmethod
    def forward(ctx, x, weight, recipe):
        ctx.recipe = recipe
        ctx.save_for_backward(x, weight)
        return emulate(recipe, x, weight.t()).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        grad_x = emulate(ctx.recipe, gradient, weight, gradient="lhs").to(x.dtype)
        grad_weight = emulate(ctx.recipe, gradient.t(), x, gradient="lhs").to(x.dtype)
        return grad_x, grad_weight, None


class Emulated(TorchFunctionMode):
    """Every F.linear within runs in a recipe's numerics."""

    def __init__(self, recipe):
        super().__init__()
        self.recipe = RECIPES[recipe]

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not F.linear:
            return function(*args, **(kwargs or {}))
        x, weight, bias = (*args, None)[:3]
        out = EmulatedLinear.apply(x, weight, self.recipe)
        return out if bias is None else out + bias


def emulated(recipe, model, *inputs):
    with Emulated(recipe):
        return model(*inputs)


class Ranker(nn.Module):
    """An embedding, a tower with a norm, a dot interaction: one linear, one linear, one bmm, one linear."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 16)
        self.bottom = nn.Linear(32, 64)
        self.norm = nn.LayerNorm(64)
        self.middle = nn.Linear(64, 32)
        self.top = nn.Linear(8, 1)

    def forward(self, ids, dense):
        x = torch.cat([self.table(ids), dense], 1)
        x = self.middle(self.norm(self.bottom(x)).relu())
        x = x.view(-1, 2, 16)
        pairs = torch.cat([x @ x.transpose(1, 2), x[:, :, :2]], 2).flatten(1)
        return self.top(pairs).squeeze(1)


class Linear(nn.Module):
    def __init__(self, k=32, n=48, bias=True):
        super().__init__()
        self.fc = nn.Linear(k, n, bias)

    def forward(self, x):
        return self.fc(x)


class MLP(nn.Module):
    def __init__(self, *widths, norm=False):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(k, n) for k, n in pairwise(widths))
        self.norm = nn.BatchNorm1d(widths[-1]) if norm else nn.Identity()

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu()
        return self.norm(x)


def compiled_with(plan, model, **options):
    return torch.compile(model, backend="loka", **options, options={"plan": plan})


def two_dimensional(site):
    return site.op in ("mm", "addmm")


def emulated_linear(recipe, x, weight, bias=None):
    out = emulate(RECIPES[recipe], x, weight.t())
    return out if bias is None else out + bias


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# ---------------------------------------------------------------- modes of torch.compile


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


# ---------------------------------------------------------------- shapes of models


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
        for given, end in ((plan, emulated_linear("int8_rowwise", hidden, model.fc.weight, model.fc.bias)),
                           (half, model.fc(hidden))):  # fmt: skip
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


@pytest.mark.parametrize("recipe", SIGNED)
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


# ---------------------------------------------------------------- training


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


# ---------------------------------------------------------------- weights that change


def _in_place(model, optimizer):
    with torch.no_grad():
        model.fc.weight.mul_(1.5)


def _copy(model, optimizer):
    with torch.no_grad():
        model.fc.weight.copy_(torch.randn_like(model.fc.weight))


def _one_value(model, optimizer):
    with torch.no_grad():
        model.fc.weight[7, 3] += 4


def _data(model, optimizer):
    model.fc.weight.data.mul_(1.5)


def _new_data(model, optimizer):
    model.fc.weight.data = torch.randn_like(model.fc.weight)


def _step(model, optimizer):
    model.fc.weight.grad = torch.randn_like(model.fc.weight)
    optimizer.step()


def _load(model, optimizer):
    model.load_state_dict({name: torch.randn_like(value) for name, value in model.state_dict().items()})


def _assign(model, optimizer):
    state = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def _replace(model, optimizer):
    model.fc.weight = nn.Parameter(torch.randn_like(model.fc.weight))


def _detached(model, optimizer):
    model.fc.weight.detach().add_(1)


def _numpy(model, optimizer):
    model.fc.weight.detach().numpy()[:] *= -1.5


CHANGES = [_in_place, _copy, _one_value, _data, _new_data, _step, _load, _assign, _replace, _detached, _numpy]


@pytest.mark.parametrize("recipe", ["int8_rowwise", "fp8_rowwise", "bf16"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_a_changed_weight_is_never_served_stale(change, recipe, plan_for, op_by_op):
    model, x = Linear(), torch.randn(5, 32)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    plan = plan_for(recipe, model, x)
    compiled = compiled_with(plan, model)
    tolerance = {"rtol": 1e-2, "atol": 2e-2} if recipe == "bf16" else {}
    for _ in range(3):
        with torch.no_grad():
            for _ in range(2):
                expected = emulated_linear(recipe, x, model.fc.weight, model.fc.bias)
                torch.testing.assert_close(compiled(x), expected, **tolerance)
        change(model, optimizer)
    assert all("frozen" in kernel for record in loka.records(compiled) for kernel in record.kernels.values())


@pytest.mark.xfail(strict=True, reason="a write through .data has no version, and only 64 of the values are looked at")
def test_one_value_changed_through_data_is_not_seen(plan_for, op_by_op):
    model, x = Linear(64, 64), torch.randn(5, 64)
    compiled = compiled_with(plan_for("int8_rowwise", model, x), model)
    with torch.no_grad():
        compiled(x)
        model.fc.weight.data[7, 3] += 4
        torch.testing.assert_close(compiled(x), emulated_linear("int8_rowwise", x, model.fc.weight, model.fc.bias))


def test_a_changed_weight_in_generated_code(plan_for):
    model, x = Linear(), torch.randn(5, 32)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    compiled = compiled_with(plan_for("int8_rowwise", model, x), model)
    for change in (lambda *_: None, _in_place, _data, _step, _load):
        change(model, optimizer)
        with torch.no_grad():
            expected = emulated_linear("int8_rowwise", x, model.fc.weight, model.fc.bias)
            torch.testing.assert_close(compiled(x), expected)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("recipe", SIGNED)
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_a_value_that_is_not_finite_stays_so_in_its_row(recipe, bad, grad, plan_for, op_by_op):
    model, x = Linear(), torch.randn(6, 32)
    compiled = compiled_with(plan_for(recipe, model, x), model)
    with torch.set_grad_enabled(grad):
        clean = compiled(x).detach()
        x[2, 5] = bad
        out = compiled(x).detach()
    others = [0, 1, 3, 4, 5]
    assert not out[2].isfinite().any()
    assert out[others].isfinite().all()
    if recipe != "fp8_tensorwise":  # one scale for all rows: the row that left took part in it
        torch.testing.assert_close(out[others], clean[others], rtol=0, atol=0)


@pytest.mark.parametrize("recipe", SIGNED)
def test_a_nan_in_a_weight_stays_in_its_column(recipe, plan_for, op_by_op):
    model, x = Linear(), torch.randn(6, 32)
    with torch.no_grad():
        model.fc.weight[4, 9] = float("nan")
        out = compiled_with(plan_for(recipe, model, x), model)(x)
    assert out[:, 4].isnan().all()
    block = recipe == "fp8_blockwise"
    assert out[:, [c for c in range(48) if c != 4]].isfinite().all() or block


@pytest.mark.parametrize("recipe", SIGNED)
def test_rows_of_zeros_give_the_bias(recipe, plan_for, op_by_op):
    model, x = Linear(), torch.randn(6, 32)
    x[1] = 0
    x[4] = 0
    with torch.no_grad():
        compiled = compiled_with(plan_for(recipe, model, x), model)
        torch.testing.assert_close(compiled(x)[[1, 4]], model.fc.bias.expand(2, -1), rtol=0, atol=0)
        torch.testing.assert_close(compiled(torch.zeros(6, 32)), model.fc.bias.expand(6, -1), rtol=0, atol=0)
        model.fc.weight.zero_()
        torch.testing.assert_close(compiled(x), model.fc.bias.expand(6, -1), rtol=0, atol=0)


@pytest.mark.parametrize("size", [1e-30, 1e-13, 1e13, 1e30])
@pytest.mark.parametrize("recipe", ["int8_rowwise", "fp8_rowwise", "fp8_tensorwise", "fp8_blockwise"])
def test_very_small_and_very_large_activations_are_finite(recipe, size, plan_for, op_by_op):
    model, x = Linear(bias=False), torch.randn(6, 32) * size
    with torch.no_grad():
        out = compiled_with(plan_for(recipe, model, x), model)(x)
    assert out.isfinite().all()
    if size > 1e-12:
        assert sqnr_db(out, model(x)) > 20
    else:  # below the floor of amax: towards zero, never larger than they were
        assert out.abs().max() <= 2 * model(x).abs().max()


def test_an_integer_matmul_is_left_alone(sites_of, plan_for, op_by_op):
    def count(a, b, x, w):
        return a @ b, x @ w

    args = torch.randint(9, (4, 8)), torch.randint(9, (8, 4)), torch.randn(4, 8), torch.randn(8, 4)
    with torch.no_grad():
        out, _ = compiled_with(plan_for("int8_rowwise", count, *args), count)(*args)
        assert torch.equal(out, args[0] @ args[1])
        # nor does a look at the first batch trip over it
        compiled = torch.compile(count, backend="loka", options={"measure_calls": 0})
        assert torch.equal(compiled(*args)[0], args[0] @ args[1])


def test_tensors_on_a_device_without_kernels_are_a_clear_error(plan_for):
    model = Linear()
    plan = plan_for("int8_rowwise", model, torch.randn(5, 32))
    with pytest.raises(Exception, match="loka compiles for cpu and cuda; this graph has tensors on meta"):
        compiled_with(plan, model.to("meta"))(torch.randn(5, 32, device="meta"))


def test_bad_options_are_reported_before_anything_is_compiled():
    with pytest.raises(Exception, match=r"unknown option 'plam'.*plan"):
        torch.compile(Linear(), backend="loka", options={"plam": None})(torch.randn(5, 32))
    with pytest.raises(Exception, match=r"cannot read plan nowhere\.json"):
        torch.compile(Linear(), backend="loka", options={"plan": "nowhere.json"})(torch.randn(5, 32))


# ---------------------------------------------------------------- planning leaves no trace


@pytest.fixture
def profiled():
    """A model, its probe's profile, and a plan of it."""
    torch.manual_seed(0)
    model, x = MLP(32, 64, 48), torch.randn(64, 32)
    with loka.probe(model) as probe, torch.no_grad():
        model(x)
    return model, x, probe.profile


def test_a_profile_becomes_a_plan(profiled, op_by_op):
    model, x, profile = profiled
    compiled = torch.compile(model, backend="loka", options={"profile": profile, "min_speedup": 0})
    with torch.no_grad():
        out = compiled(x)
    assert loka.plan(compiled).lowered and sqnr_db(out, model(x)) > 20


@pytest.mark.parametrize("dynamic", [None, True], ids=["static", "dynamic"])
def test_no_configuration_at_all(dynamic, op_by_op):
    model, x = MLP(32, 64, 48), torch.randn(64, 32)
    kept = x.clone()
    compiled = torch.compile(model, backend="loka", dynamic=dynamic, options={"min_speedup": 0, "measure_calls": 0})
    with torch.no_grad():
        assert sqnr_db(compiled(x), model(x)) > 20
        if dynamic:
            with torch.compiler.set_stance("fail_on_recompile"):
                assert sqnr_db(compiled(x[:37]), model(x[:37])) > 20
    assert torch.equal(x, kept)
    assert loka.plan(compiled).lowered and loka.plan(compiled).origin == "a look at the first batch, forward only"


def test_no_configuration_in_generated_code():
    model, x = MLP(32, 64, 48), torch.randn(64, 32)
    compiled = torch.compile(model, backend="loka")
    with torch.no_grad():
        for _ in range(4):  # three are measured, the fourth is planned
            assert sqnr_db(compiled(x), model(x)) > 20
    assert set(loka.plan(compiled).decisions) == {"layers.0#0:output", "layers.1#0:output"}


def test_fused_loops_that_do_not_split_alike():
    """Inductor's C++ generator alone fails on this (torch 2.13), as on a gradient in blocks along both its axes."""

    def both(x, s, t):
        return x * s.repeat_interleave(128, -1), x.mT * t.repeat_interleave(128, -1)

    args = torch.randn(256, 384), torch.randn(256, 3), torch.randn(384, 2)
    compiled = torch.compile(both, backend="loka", options={"recipes": ()})
    for ours, eager in zip(compiled(*args), both(*args), strict=True):
        torch.testing.assert_close(ours, eager)


def test_running_statistics_are_updated_once_a_call(op_by_op):
    model, x = MLP(32, 64, 48, norm=True), torch.randn(64, 32)
    twin = MLP(32, 64, 48, norm=True)
    twin.load_state_dict(model.state_dict())
    options = {"recipes": ("bf16",), "min_speedup": 0, "measure_calls": 0}
    compiled = torch.compile(model, backend="loka", options=options)
    for _ in range(2):
        compiled(x), twin(x)
    assert loka.plan(compiled).lowered
    assert model.norm.num_batches_tracked == 2
    torch.testing.assert_close(model.norm.running_mean, twin.norm.running_mean, rtol=2e-2, atol=1e-3)


def test_the_random_state_is_the_models_own(op_by_op):
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(32, 48)

        def forward(self, x):
            return F.dropout(self.fc(x), 0.5, self.training)

    model, x = Dropping(), torch.randn(64, 32)
    compiled = torch.compile(model, backend="loka", options={"min_speedup": 0, "measure_calls": 0})
    outs = []
    for _ in range(2):  # the first call plans, the second does not
        torch.manual_seed(3)
        outs.append((compiled(x).detach(), torch.get_rng_state()))
    assert loka.plan(compiled).lowered
    assert torch.equal(outs[0][0], outs[1][0]) and torch.equal(outs[0][1], outs[1][1])
    dropped = (outs[0][0] == 0).float().mean()
    assert 0.45 < dropped < 0.55

    model.eval()
    state = torch.get_rng_state()
    with torch.no_grad():
        compiled(x)
    assert torch.equal(torch.get_rng_state(), state)


def test_inputs_a_model_writes_to_are_written_once(op_by_op):
    def step(state, x, w):
        state.add_(1)
        return x @ w + state

    state, x, w = torch.zeros(48), torch.randn(5, 32), torch.randn(32, 48)
    compiled = torch.compile(step, backend="loka", options={"min_speedup": 0, "measure_calls": 0})
    with torch.no_grad():
        compiled(state, x, w)
    assert torch.equal(state, torch.ones(48))


# ---------------------------------------------------------------- more than one compilation in a process


def test_two_models_of_one_class_keep_their_own_plans(plan_for, op_by_op):
    a, b, x = Linear(), Linear(), torch.randn(5, 32)
    plans = [plan_for(recipe, a, x) for recipe in ("int8_rowwise", "fp8_rowwise")]
    compiled = [compiled_with(plan, model) for plan, model in zip(plans, (a, b), strict=True)]
    with torch.no_grad():
        for _ in range(2):
            for recipe, model, run in zip(("int8_rowwise", "fp8_rowwise"), (a, b), compiled, strict=True):
                torch.testing.assert_close(run(x), emulated_linear(recipe, x, model.fc.weight, model.fc.bias))
    assert [loka.plan(run) for run in compiled] == plans


def test_one_model_under_two_plans(plan_for, op_by_op):
    model, x = Linear(), torch.randn(5, 32)
    plans = {recipe: plan_for(recipe, model, x) for recipe in ("int8_rowwise", "fp8_rowwise")}
    with torch.no_grad():
        for recipe, plan in plans.items():
            compiled = compiled_with(plan, model)
            torch.testing.assert_close(compiled(x), emulated_linear(recipe, x, model.fc.weight, model.fc.bias))
            assert loka.plan(compiled) == plan


def test_reset_forgets_and_the_next_call_compiles_anew(plan_for, op_by_op):
    model, x = Linear(), torch.randn(5, 32)
    compiled = compiled_with(plan_for("int8_rowwise", model, x), model)
    with torch.no_grad():
        first = compiled(x)
        assert len(loka.records(compiled)) == 1
        torch._dynamo.reset()
        with pytest.raises(ValueError, match="call the compiled model once"):
            loka.records(compiled)
        assert torch.equal(compiled(x), first)
        assert len(loka.records(compiled)) == 1


def test_compiled_code_can_be_freed(plan_for, op_by_op):
    import gc
    import weakref

    from loka_compile.inspect.compiled import graphs_of

    model, x = Linear(), torch.randn(5, 32)
    compiled = compiled_with(plan_for("int8_rowwise", model, x), model)
    with torch.no_grad():
        compiled(x)
    (graph,) = map(weakref.ref, graphs_of(compiled))
    assert graph() is not None
    del model, compiled
    torch._dynamo.reset()
    gc.collect()
    assert graph() is None


def test_the_backend_is_found_by_its_name_alone():
    script = """
import sys, torch
assert "loka" in torch._dynamo.list_backends()
assert not [name for name in sys.modules if name.startswith("loka")]
model = torch.nn.Linear(8, 4)
x = torch.randn(3, 8)
with torch.no_grad():
    out = torch.compile(model, backend="loka", options={"recipes": ()})(x)
torch.testing.assert_close(out, model(x))
assert "loka_compile.backend" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
