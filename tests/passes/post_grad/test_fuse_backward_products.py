"""Norms in training: a gradient that rides in the product before it, and a bias's sum in that of its weight."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.helpers import skipped, speak_of
from tests.passes.post_grad.test_fuse_backward import SUMS, B, D, assert_exact, did, loka_ops, planned, run, stack

pytestmark = pytest.mark.usefixtures("fresh_dynamo", "seeded")


class Relus(nn.Module):
    def __init__(self, bias=True, dropout=0.0):
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(D, D, bias=bias) for _ in range(3))
        self.dropout = dropout

    def forward(self, x):
        for linear in self.linears[:-1]:
            x = F.dropout(F.relu(linear(x)), self.dropout)
        return self.linears[-1](x)


def product_rejects(captured):
    return [reject.reason for reject in captured.results["fuse_backward", "backward"].rejects]


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("bias", [True, False])
def test_the_gradient_of_a_relu_rides_in_the_product_before_it(plan_for, bias, dynamic):
    model = Relus(bias)
    captured, *found = run(model, dtype=torch.bfloat16, plan=planned(plan_for, model), dynamic=dynamic)
    ride = "with the gradient of the ReLU in its epilogue"
    assert sorted(did(captured)) == [*[SUMS] * 2 * bias, ride, ride]
    assert loka_ops(captured, "backward") == {"loka.gemm_gradient": 2, "loka.scaled_gemm": 1}  # of x's gradient
    assert captured.ops("backward")["aten.where"] == 0
    assert captured.ops("backward")["aten.sum"] == (1 if bias else 0)  # of the last layer's
    assert not product_rejects(captured)
    assert_exact(*found)


def test_with_a_dropout_too(plan_for):
    model = Relus(dropout=0.5)
    captured, *_ = run(model, dtype=torch.bfloat16, plan=planned(plan_for, model))
    assert loka_ops(captured, "backward")["loka.gemm_gradient"] == 2
    gains = {node.args[3] for node in captured.graphs["backward"].nodes if "gemm_gradient" in str(node.target)}
    assert gains == {2.0}


class ReadTwice(Relus):
    """The gradient is of a sum of two products'."""

    def forward(self, x):
        x = F.relu(self.linears[0](x))
        return self.linears[1](x) + self.linears[2](x)


@pytest.mark.parametrize(
    ("model", "recipe", "word"),
    [
        (stack(nn.LayerNorm), "bf16", "gradient of layer"),
        (stack(nn.RMSNorm, nn.SiLU), "bf16", "gradient of rms"),
        (Relus(), "fp8_rowwise", "torch.float8_e4m3fn"),
        (Relus(), "fp8_tensorwise", "torch.float8_e5m2"),
    ],
)
def test_what_does_not_ride_says_why(plan_for, with_fp8, model, recipe, word):
    model = copy.deepcopy(model)
    captured, *_ = run(model, dtype=torch.bfloat16, plan=planned(plan_for, model, recipe=recipe))
    assert any(word in reason for reason in product_rejects(captured))
    assert not loka_ops(captured, "backward").get("loka.gemm_gradient")


def test_a_padded_contraction_rides_and_padded_columns_do_not(plan_for):
    model = Relus()
    model.linears = nn.ModuleList([nn.Linear(D, D), nn.Linear(D, 40), nn.Linear(40, D)])
    captured, *found = run(model, dtype=torch.bfloat16, plan=planned(plan_for, model))
    assert did(captured).count("with the gradient of the ReLU in its epilogue") == 1  # of linears.1, whose K is 40
    assert speak_of(product_rejects(captured), "48")
    assert_exact(*found)


def test_a_sum_of_two_products_is_no_epilogue(plan_for):
    model = ReadTwice()
    captured, *found = run(model, dtype=torch.bfloat16, plan=planned(plan_for, model))
    assert not loka_ops(captured, "backward").get("loka.gemm_gradient")
    assert_exact(*found)


def test_dispatch_knows_of_it(sites_of):
    """From a graph where nothing is raised, as a probe on a CPU sees it."""
    model, x = Relus(dropout=0.5).bfloat16(), torch.randn(8, D, dtype=torch.bfloat16, requires_grad=True)
    epilogues = {site.key: site.epilogue for site in sites_of(model, x)[0] if site.role == "grad_input"}
    inner = {"linears.2#0:grad_input": "activation", "linears.1#0:grad_input": "activation"}
    assert epilogues == {**inner, "linears.0#0:grad_input": ""}
    found = sites_of(stack().bfloat16(), x)[0]
    assert not [site.key for site in found if site.role == "grad_input" and site.epilogue]  # a norm wants whole rows


BESIDE = "with the gradient of the bias"


class Merged(nn.Module):
    """A gradient that is put together from several, of a linear with a bias, and one that the loss gives."""

    def __init__(self, bias=True):
        super().__init__()
        self.qkv, self.out = nn.Linear(D, 3 * D, bias=bias), nn.Linear(D, D, bias=bias)

    def forward(self, x):
        q, k, v = self.qkv(x).split(D, -1)
        return self.out(torch.tanh(q) * k + v)


@pytest.mark.parametrize("shape", [(256, D), (4, 12, D)])
def test_a_weights_and_its_biass_gradient_are_one_product(plan_for, shape):
    model = Merged()
    plan = planned(plan_for, model, role="grad_weight", shape=shape)
    captured, *found = run(model, torch.randn(shape), dtype=torch.bfloat16, plan=plan)
    assert did(captured) == [BESIDE, BESIDE] and not product_rejects(captured)
    assert loka_ops(captured, "backward") == {"loka.grad_weight": 2}
    assert captured.ops("backward")["aten.sum"] == 0
    assert_exact(*found)


def test_without_a_bias_there_is_no_sum(plan_for):
    model = Merged(bias=False)
    plan = planned(plan_for, model, role="grad_weight", shape=(256, D))
    captured, *found = run(model, torch.randn(256, D), dtype=torch.bfloat16, plan=plan)
    assert not did(captured) and not product_rejects(captured)
    assert loka_ops(captured, "backward") == {"loka.scaled_gemm": 2}
    assert_exact(*found)


def test_rows_that_are_padded_are_summed_apart(plan_for):
    model = Merged()
    plan = planned(plan_for, model, role="grad_weight", shape=(B, D))
    captured, *found = run(model, dtype=torch.bfloat16, plan=plan)
    assert not did(captured) and captured.ops("backward")["aten.sum"] == 2
    assert loka_ops(captured, "backward") == {"loka.scaled_gemm": 2}
    assert_exact(*found)


def test_a_raised_gradient_keeps_its_sum(plan_for):
    model = Relus()
    plan = planned(plan_for, model, role="grad_weight", shape=(256, D))
    captured, *found = run(model, torch.randn(256, D), dtype=torch.bfloat16, plan=plan)
    assert sorted(did(captured)) == [*[SUMS] * 2, BESIDE]  # the last layer's alone
    assert_exact(*found)


@pytest.mark.parametrize(
    ("provider", "recipe", "dtype", "words"),
    [
        ("aten", "bf16", torch.bfloat16, ["aten"] * 2),
        ("triton", "bf16", torch.float32, []),  # what is multiplied was cast, and is not what is summed
        ("triton", "fp8_rowwise", torch.bfloat16, []),
    ],
)
def test_a_sum_that_stays(plan_for, with_fp8, provider, recipe, dtype, words):
    model, x = Merged(), torch.randn(256, D, requires_grad=True)
    only = lambda site: site.role == "grad_weight"  # noqa: E731
    cast = copy.deepcopy(model).to(dtype)
    plan = plan_for(recipe, cast, x.to(dtype), provider=provider, target="h100", only=only)
    captured, *_ = run(model, torch.randn(256, D), dtype=dtype, plan=plan)
    assert speak_of(product_rejects(captured), *words)
    assert captured.ops("backward")["aten.sum"] == 2 and not loka_ops(captured, "backward").get("loka.grad_weight")


def test_dispatch_knows_of_sums_that_read_memory(sites_of):
    x = torch.randn(8, D, dtype=torch.bfloat16, requires_grad=True)
    for model, expected in ((Merged(), ["sum", "sum"]), (Merged(bias=False), ["", ""]), (Relus(), ["sum", "", ""])):
        found = [each for each in sites_of(model.bfloat16(), x)[0] if each.role == "grad_weight"]
        assert [site.epilogue for site in found] == expected


def test_one_row_and_none():
    for rows in (0, 1):
        _, found, exact, _ = run(stack(), torch.randn(rows, D))
        for ours, theirs in zip(found, exact, strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)


def test_on_a_cpu_nothing_is_raised():
    captured, *found = run(stack(), device="cpu")
    assert skipped(captured, "raise_norms", "dynamo") and skipped(captured, "fuse_backward", "backward")
    assert not loka_ops(captured, "backward") and not loka_ops(captured, "forward")
    assert_exact(*found)
