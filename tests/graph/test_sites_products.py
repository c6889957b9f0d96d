"""Every way to multiply is a site, in training with its gradients, and what is known of the operands."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from loka_compile.graph.nodes import unflip
from tests.graph.test_sites import Root, in_inference, in_training

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("lead", [(13,), (3, 13)])
def test_linear(sites_of, bias, lead):
    model = nn.Sequential(nn.Linear(12, 16, bias=bias))
    x = torch.randn(*lead, 12)
    rows = x.numel() // 12
    (site,) = in_inference(sites_of, model, x).values()
    assert (site.op, site.role, site.shape) == ("addmm" if bias else "mm", "output", f"({rows}, 12) @ (12, 16)")
    assert site.dtype == torch.float32
    assert site.static_rhs
    sites = in_training(sites_of, model, x)
    assert sorted(site.role for site in sites.values()) == ["grad_weight", "output"]  # x wants no gradient
    assert len(in_training(sites_of, model, x.requires_grad_())) == 3


def test_a_frozen_weight_has_no_grad_weight(sites_of):
    model = nn.Sequential(nn.Linear(12, 16), nn.Linear(16, 4))
    model[1].requires_grad_(False)
    sites = in_training(sites_of, model, torch.randn(5, 12))
    assert Counter(site.role for site in sites.values()) == {"output": 2, "grad_input": 1, "grad_weight": 1}


CALLS = {
    "mm": (lambda x, w: torch.mm(x, w), (13, 12), [(12, 16)], "mm", "(13, 12) @ (12, 16)", True),
    "matmul": (lambda x, w: x @ w, (13, 12), [(12, 16)], "mm", "(13, 12) @ (12, 16)", True),
    "matmul 3d": (lambda x, w: x @ w, (3, 13, 12), [(12, 16)], "mm", "(39, 12) @ (12, 16)", True),
    "addmm": (lambda x, w, b: torch.addmm(b, x, w), (13, 12), [(12, 16), (16,)], "addmm", "(13, 12) @ (12, 16)", True),
    "functional linear": (lambda x, w: F.linear(x, w), (13, 12), [(16, 12)], "mm", "(13, 12) @ (12, 16)", True),
    "bmm": (lambda x, w: torch.bmm(x, w), (3, 13, 12), [(3, 12, 16)], "bmm", "3 x (13, 12) @ (12, 16)", True),
    "batched matmul": (lambda x, w: x @ w, (3, 13, 12), [(3, 12, 16)], "bmm", "3 x (13, 12) @ (12, 16)", True),
    "baddbmm": (
        lambda x, w, b: torch.baddbmm(b, x, w),
        (3, 13, 12),
        [(3, 12, 16), (3, 13, 16)],
        "baddbmm",
        "3 x (13, 12) @ (12, 16)",
        True,
    ),
    "einsum": (
        lambda x, w: torch.einsum("bnd,dk->bnk", x, w),
        (3, 13, 12),
        [(12, 16)],
        "bmm",
        "(39, 12) @ (12, 16)",
        False,
    ),
    "batched einsum": (
        lambda x, w: torch.einsum("bnd,bdk->bnk", x, w),
        (3, 13, 12),
        [(3, 12, 16)],
        "bmm",
        "3 x (13, 12) @ (12, 16)",
        False,
    ),
    "gram": (lambda x: x @ x.transpose(1, 2), (3, 13, 12), [], "bmm", "3 x (13, 12) @ (12, 13)", False),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_way_to_multiply(sites_of, name):
    body, shape, parameters, op, expected, static = CALLS[name]
    model, x = Root(body, *parameters), torch.randn(shape)
    sites = in_inference(sites_of, model, x)
    assert list(sites) == ["self#0:output"]
    site = sites["self#0:output"]
    assert (site.op, site.shape) == (op, expected)
    assert site.static_rhs == static
    trained = in_training(sites_of, model, x.requires_grad_())
    assert next(iter(trained)) == "self#0:output"
    assert set(trained) == {f"self#0:{role}" for role in ("output", "grad_input", "grad_weight")}


def test_gradients_of_a_gram_matrix_tell_their_places(sites_of):
    (forward, *backward) = in_training(
        sites_of, lambda x: (x @ x.transpose(1, 2)).sin(), torch.randn(2, 5, 3, requires_grad=True)
    ).values()
    assert forward.shape == "2 x (5, 3) @ (3, 5)"
    assert {(site.role, site.gradient) for site in backward} == {("grad_input", "lhs"), ("grad_weight", "rhs")}


def test_a_parameter_that_the_graph_changes_is_not_static(sites_of):
    def forward(x, changed, kept):
        y = x @ changed @ kept
        with torch.no_grad():
            changed.mul_(0.5)
        return y

    sites = in_inference(sites_of, Root(forward, (12, 16), (16, 4)), torch.randn(5, 12))
    assert [site.static_rhs for site in sites.values()] == [False, True]


def test_what_is_no_parameter_is_not_static(sites_of):
    weight = torch.randn(12, 16)
    sites = in_inference(sites_of, lambda x, w: x @ w @ (w * 2).t(), torch.randn(5, 12), weight)
    assert not any(site.static_rhs for site in sites.values())
    derived = Root(lambda x, w: x @ (w * 2), (12, 16))
    assert not any(site.static_rhs for site in in_inference(sites_of, derived, torch.randn(5, 12)).values())


def test_a_buffer_is_static(sites_of):
    class Projection(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("basis", torch.randn(12, 16))

        def forward(self, x):
            return x @ self.basis

    (site,) = in_inference(sites_of, Projection(), torch.randn(5, 12)).values()
    assert site.static_rhs


def test_integer_products_are_sites_too(sites_of):
    (site,) = in_inference(sites_of, lambda x: x @ x.t(), torch.ones(3, 4, dtype=torch.int64)).values()
    assert site.dtype == torch.int64


def test_unflip_sees_through_every_transpose():
    from torch.fx.experimental.proxy_tensor import make_fx

    def function(x):
        return x.t(), x.t().t(), x.transpose(-1, -2), x.permute(1, 0), x.permute(0, 1), x.mT.mT.mT

    graph = make_fx(function, tracing_mode="fake")(torch.randn(3, 4)).graph
    (x,), (out,) = graph.find_nodes(op="placeholder"), graph.find_nodes(op="output")
    flips = [unflip(node) for node in out.args[0]]
    assert flips[:4] == [(x, True), (x, False), (x, True), (x, True)]
    assert flips[5] == (x, True)
    batched = make_fx(lambda y: (y.transpose(1, 2), y.permute(1, 0, 2), y.transpose(0, 1)), tracing_mode="fake")
    graph = batched(torch.randn(2, 3, 4)).graph
    (y,), (out,) = graph.find_nodes(op="placeholder"), graph.find_nodes(op="output")
    assert [unflip(node) == (y, True) for node in out.args[0]] == [True, False, False]
    views = lambda y: (y.mT.expand(2, 4, 3).reshape(2, 4, 3), y.expand(2, 3, 4).view(2, 4, 3))  # noqa: E731
    graph = make_fx(views, tracing_mode="fake")(torch.randn(2, 3, 4)).graph
    (y,), (out,) = graph.find_nodes(op="placeholder"), graph.find_nodes(op="output")
    assert [unflip(node) == (y, True) for node in out.args[0]] == [True, False]


def test_operands_know_their_tensor_and_what_made_it(sites_of):
    first, second = torch.nn.Linear(12, 8), torch.nn.Linear(12, 8)

    def model(x):
        x = torch.relu(x)
        return first(x), second(x), x.t() @ x, torch.tanh(x) @ torch.ones(12, 3)

    a, b, gram, signed = in_inference(sites_of, model, torch.randn(5, 12)).values()
    assert a.lhs == b.lhs == gram.rhs and a.lhs.producer == "relu.default" and a.lhs.nonnegative
    assert gram.lhs.tensor == gram.rhs.tensor and gram.lhs.flipped and not gram.rhs.flipped
    assert a.rhs.producer == "placeholder" and a.rhs.flipped and a.rhs.tensor != b.rhs.tensor
    assert signed.lhs.producer == "tanh.default" and not signed.lhs.nonnegative


@pytest.mark.parametrize(
    "function, nonnegative",
    [(torch.square, True), (lambda x: x**3, False), (lambda x: x.clamp(0, 1), True), (lambda x: x.clamp(-1, 1), False)],
)
def test_what_is_known_to_be_nonnegative(sites_of, function, nonnegative):
    (site,) = in_inference(sites_of, lambda x: function(x) @ torch.ones(12, 3), torch.randn(5, 12)).values()
    assert site.lhs.nonnegative == nonnegative
