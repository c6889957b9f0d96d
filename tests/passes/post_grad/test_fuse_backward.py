"""Norms in training: raised with their gradients, which fuse_backward and lower leave as one kernel where it saves a
pass; the same gradients as float64's.

The graphs are those of a CUDA device, run op by op here, where an op computes its reference.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from loka_compile.kernels.providers import triton
from loka_compile.mods.adapt import BlockNorm
from loka_compile.passes import PIPELINE
from loka_compile.passes.raising.raise_norms import RaiseNorms
from loka_compile.passes.simplify.canonicalize import Canonicalize
from loka_compile.spec.plan import Plan
from tests.helpers import compile_op_by_op, skipped, speak_of, sqnr_db

pytestmark = pytest.mark.usefixtures("fresh_dynamo")
RAISING = (Canonicalize(), RaiseNorms())
B, D, EPS = 257, 64, 1e-5  # a prime batch
NOTHING = Plan("h100", {}, origin="nothing is planned")
SUMS = "sums itself over rows, for the bias before it"


@pytest.fixture
def with_fp8(monkeypatch):
    """Planned as on a GPU that has FP8; there is none here to ask."""
    monkeypatch.setattr(triton, "_fp8_here", lambda: True)


def stack(norm=nn.LayerNorm, activation=nn.ReLU, bias=True, layers=2, width=D):
    made = [m for _ in range(layers) for m in (nn.Linear(width, width, bias=bias), norm(width), activation())]
    model = nn.Sequential(*made)
    for module in model:
        if not isinstance(module, nn.Linear):
            for parameter in module.parameters():
                nn.init.normal_(parameter, 1.0, 0.2)
    return model


def gradients(model, x, out):
    """Of x and the parameters, for a loss that weighs every output differently."""
    weights = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (out.double() * weights).sum().backward()
    return [x.grad, *(p.grad for p in model.parameters())]


def run(model, x=None, dtype=torch.float32, plan=NOTHING, device="cuda", dynamic=None, pipeline=PIPELINE):
    """(captured, gradients, float64's gradients, those of eager mode)"""
    x = torch.randn(B, D) if x is None else x
    model, x = model.to(dtype), x.to(dtype).requires_grad_()
    if dynamic:
        torch._dynamo.mark_dynamic(x, 0)
    exact, exact_x = copy.deepcopy(model).double(), x.detach().double().requires_grad_()
    eager, eager_x = copy.deepcopy(model), x.detach().clone().requires_grad_()
    captured = compile_op_by_op(model, plan, device=device, on_dynamo=RAISING, dynamic=dynamic, pipeline=pipeline)
    found = gradients(model, x, captured(x))
    for name, graph in captured.graphs.items():
        graph.lint()
        assert all("val" in node.meta for node in graph.nodes if node.op != "output"), name
    return captured, found, gradients(exact, exact_x, exact(exact_x)), gradients(eager, eager_x, eager(eager_x))


def did(captured, graph="backward"):
    return [rewrite.did for rewrite in captured.results["fuse_backward", graph].rewrites]


def loka_ops(captured, graph):
    return {op: n for op, n in captured.ops(graph).items() if op.startswith("loka.")}


def assert_exact(found, exact, eager):
    """In float32 to its rounding; in bfloat16 no worse than eager mode, which rounds more often."""
    for ours, theirs, torchs in zip(found, exact, eager, strict=True):
        assert ours.dtype == torchs.dtype and ours.shape == torchs.shape
        assert sqnr_db(ours, theirs) > (100 if ours.dtype == torch.float32 else sqnr_db(torchs, theirs) - 0.5)


@pytest.fixture(autouse=True)
def seeded():
    """What 16 bits lose in a sum differs by as much as the bound from one draw to the next."""
    torch.manual_seed(0)


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_a_norm_is_one_op_with_three_sums(dtype, dynamic):
    captured, *found = run(stack(), dtype=dtype, dynamic=dynamic)
    assert len(captured.results["raise_norms", "dynamo"].rewrites) == 2
    assert did(captured) == [SUMS, SUMS]
    assert loka_ops(captured, "backward") == {"loka.norm_quantize_backward": 2}
    assert captured.ops("backward")["aten.sum"] == 0 and captured.ops("backward")["aten.rsqrt"] == 0
    assert not loka_ops(captured, "forward")  # Inductor's norm, which saves the statistics
    assert captured.ops("forward")["aten.rsqrt"] == 2
    assert_exact(*found)


@pytest.mark.parametrize("norm", ["layer", "rms", "block"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.Hardswish, nn.GELU, nn.Identity])
def test_every_norm_with_every_activation(norm, activation):
    make = {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "block": lambda n: BlockNorm(n, 16)}[norm]
    captured, *found = run(stack(make, activation))
    assert did(captured) == [SUMS, SUMS]
    assert loka_ops(captured, "backward") == {"loka.norm_quantize_backward": 2}
    assert_exact(*found)


def test_without_sums_inductor_fuses_the_gradient():
    captured, *found = run(stack(lambda n: BlockNorm(n, 16), bias=False))
    assert len(captured.results["raise_norms", "dynamo"].rewrites) == 2
    assert not did(captured) and not loka_ops(captured, "backward")
    assert_exact(*found)


def test_a_relu_alone_saves_no_more_than_its_result():
    model = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, D))
    captured, *found = run(model)
    assert did(captured) == [SUMS] and loka_ops(captured, "backward") == {"loka.norm_quantize_backward": 1}
    saved = captured.graphs["forward"].find_nodes(op="output")[0].args[0]
    assert not any(node.target is torch.ops.aten.addmm.default for node in saved[1:])
    assert_exact(*found)


class Residual(nn.Module):
    """A norm of what was added, read by a product and added on."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(D, D), nn.Linear(D, D)
        self.norm = nn.LayerNorm(D)

    def forward(self, x):
        y = F.relu(self.norm(x + self.up(x)))
        return self.down(y) + y


def test_a_norm_of_a_sum_and_three_dimensions():
    x = torch.randn(7, 11, D)
    captured, *found = run(Residual(), x)
    assert did(captured) == [SUMS]  # the added product's bias takes the same gradient
    assert loka_ops(captured, "backward") == {"loka.norm_quantize_backward": 1}
    assert_exact(*found)


# ---------------------------------------------------------------- the forward, which writes what the backward reads


def forward(captured):
    return [rewrite.did for rewrite in captured.results["fuse", "forward"].rewrites]


def assert_as_exact(found, exact, eager, smooth):
    """As eager mode is in bfloat16: together, as what one rounding more or less does to a small vector is noise. Where
    a ReLU's argument is rounded across 0 its slope jumps: over 60 draws eager's gradients have 29 to 34 dB, these 31 to
    35, one draw up to 9 dB more or less."""
    ours = torch.tensor([sqnr_db(each, theirs) for each, theirs in zip(found, exact, strict=True)])
    torchs = torch.tensor([sqnr_db(each, theirs) for each, theirs in zip(eager, exact, strict=True)])
    assert ours.min() > (40 if smooth else 18), ours
    assert (ours - torchs).mean() > -0.5 or not smooth, (ours, torchs)


@pytest.mark.parametrize("dynamic", [None, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("norm", ["layer", "rms", "block"])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Identity])
def test_a_linear_writes_its_product_beside_norm_and_activation(plan_for, norm, activation, dynamic):
    make = {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "block": lambda n: BlockNorm(n, 16)}[norm]
    model = stack(make, activation)
    captured, *found = run(model, dtype=torch.bfloat16, plan=planned(plan_for, model, role="output"), dynamic=dynamic)
    assert len(forward(captured)) == 2 and all("the product written too" in each for each in forward(captured))
    assert loka_ops(captured, "forward") == {"loka.gemm_norm": 2} and captured.ops("forward")["aten.rsqrt"] == 0
    assert loka_ops(captured, "backward") == {"loka.norm_quantize_backward": 2}
    assert_as_exact(*found, smooth=activation is not nn.ReLU)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.GELU, nn.Hardswish])
def test_an_activation_alone_has_its_argument_written_but_for_a_relu(plan_for, activation):
    model = nn.Sequential(nn.Linear(D, D), activation(), nn.Linear(D, D))
    captured, *found = run(model, dtype=torch.bfloat16, plan=planned(plan_for, model, role="output"))
    assert loka_ops(captured, "forward") == {"loka.gemm_norm": 2}
    assert ("the product written too" in forward(captured)[0]) == (activation is not nn.ReLU)
    assert_as_exact(*found, smooth=activation in (nn.SiLU, nn.GELU))


class Sum(nn.Module):
    """A norm of a residual and a linear, a transformer's; the sum is the next residual."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(D, D), nn.Linear(D, D), nn.LayerNorm(D)

    def forward(self, x):
        x = x + self.up(x.tanh())
        return x + self.down(self.norm(x))


@pytest.mark.parametrize("shape", [(B, D), (7, 11, D)])
def test_a_sum_with_a_residual_is_written_for_the_backward(plan_for, shape):
    model = Sum()
    plan = planned(plan_for, model, role="output")
    captured, *found = run(model, torch.randn(shape), dtype=torch.bfloat16, plan=plan)
    both = "with bias, residual, layer in its epilogue, the product written too"
    assert forward(captured) == [both, "with bias in its epilogue"]
    assert captured.ops("forward")["aten.add"] == 1 and captured.ops("forward")["aten.rsqrt"] == 0
    assert_as_exact(*found, smooth=True)


def test_in_fp8_too(plan_for, with_fp8):
    model = stack(activation=nn.GELU)
    plan = planned(plan_for, model, role="output", recipe="fp8_rowwise")
    captured, found, exact, _ = run(model, dtype=torch.bfloat16, plan=plan)
    assert loka_ops(captured, "forward") == {"loka.gemm_norm": 2}
    noise = [sqnr_db(ours, theirs) for ours, theirs in zip(found, exact, strict=True)]
    assert min(noise) > 20, noise


# ---------------------------------------------------------------- with the product before it


class Relus(nn.Module):
    def __init__(self, bias=True, dropout=0.0):
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(D, D, bias=bias) for _ in range(3))
        self.dropout = dropout

    def forward(self, x):
        for linear in self.linears[:-1]:
            x = F.dropout(F.relu(linear(x)), self.dropout)
        return self.linears[-1](x)


def planned(plan_for, model, role="grad_input", recipe="bf16", shape=(8, D), **more):
    x = torch.randn(shape, requires_grad=True)
    model = copy.deepcopy(model).to(torch.bfloat16)
    only = lambda site: site.role == role  # noqa: E731
    return plan_for(recipe, model, x.to(torch.bfloat16), provider="triton", target="h100", only=only, **more)


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
