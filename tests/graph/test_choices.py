"""Which GEMMs decide a choice, and which only look as if they did."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from loka_compile import compat
from loka_compile.graph.sites import annotate
from loka_compile.spec.site import Site

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class Net(nn.Module):
    """a, b, c: linears; table: an embedding. body: the forward."""

    def __init__(self, body):
        super().__init__()
        self.body = body
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.table = nn.Embedding(64, 8)

    def forward(self, x):
        return self.body(self, x)


def deciding(body, training=False):
    """By linear: the operator that its result decides of."""
    sites: list[Site] = []

    def backend(gm, inputs):
        collect = lambda graph: sites.extend(gemm.site for gemm in annotate(graph))  # noqa: E731
        return compat.capture(gm, inputs, joint=collect, inner=lambda module, is_backward: module.forward)

    torch.manual_seed(0)
    with torch.set_grad_enabled(training):
        torch.compile(Net(body), backend=backend)(torch.randn(16, 8))
    assert not any(site.decides for site in sites if site.role != "output")
    return {site.fqn: site.decides for site in sites if site.decides}


def mixture(net, x):
    weights, experts = net.b(net.a(x).relu()).softmax(-1).topk(2)
    mixed = net.c(x).unsqueeze(1) * net.table(experts)
    return (mixed * weights.unsqueeze(-1)).sum(1)


CHOICES = [
    (mixture, {"a": "topk", "b": "topk"}),
    (lambda net, x: net.table(net.a(x).argmax(-1)), {"a": "argmax"}),
    (lambda net, x: net.a(x).argsort(-1), {"a": "sort"}),
    (lambda net, x: net.b(net.a(x)).topk(3).indices, {"a": "topk", "b": "topk"}),
    (lambda net, x: net.table(torch.bucketize(net.a(x), torch.linspace(-1, 1, 5))), {"a": "bucketize"}),
    (lambda net, x: net.a(x).max(-1).indices, {"a": "max"}),
    (lambda net, x: net.table((net.a(x).sigmoid() * 9).long()), {"a": "convert_element_type"}),
    (lambda net, x: (net.a(x).sigmoid() > 0.5).float() * net.b(x), {"a": "gt"}),
    (lambda net, x: torch.where(net.a(x) > net.b(x), net.c(x), x), {"a": "gt", "b": "gt"}),
    (lambda net, x: (net.a(x) > 0) & (x > 0), {"a": "gt"}),
    (lambda net, x: x * net.a(x).round(), {"a": "round"}),
    (lambda net, x: (y := net.a(x)).masked_fill(y < y.topk(2).values[:, -1:], -1e9).softmax(-1), {"a": "lt"}),
    (lambda net, x: torch.where((y := net.a(x)) > 1, y, 0.0), {"a": "gt"}),
    (lambda net, x: net.table(((net.c(x)[:, None] - net.table.weight) ** 2).sum(-1).argmin(-1)), {"c": "argmin"}),
]


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize(("body", "expected"), CHOICES)
def test_a_gemm_that_decides_a_choice(body, expected, training):
    assert deciding(body, training) == expected


NONE = [
    lambda net, x: net.b(net.a(x).relu()),
    lambda net, x: net.b(F.leaky_relu(net.a(x))) + F.elu(net.c(x)),
    lambda net, x: net.b(torch.where((y := net.a(x)) > 0, y, 0.1 * y)),
    lambda net, x: net.b((y := net.a(x)) * (y > 0)) + (z := net.c(x)) * (z > 0).float(),
    lambda net, x: torch.where((y := net.a(x)) > 1, y, 1.0),
    lambda net, x: torch.maximum(net.a(x), net.b(x)) + net.c(x).clamp(-1, 1),
    lambda net, x: torch.where((y := net.a(x)) > (z := net.b(x)), y, z),
    lambda net, x: net.a(x).topk(3).values + net.b(x).sort().values[:, :3] + net.c(x).max(-1, keepdim=True).values,
    lambda net, x: (y := net.a(x)).sign() * y.abs().sqrt() + F.softplus(net.b(x)) + F.hardswish(net.c(x)),
    lambda net, x: F.scaled_dot_product_attention(
        net.a(x)[None], net.b(x)[None], net.c(x)[None], attn_mask=x[:, :1] < 9
    ),
    lambda net, x: net.a(F.dropout(x, 0.5)) + F.huber_loss(net.b(x), x) + F.gelu(net.c(x)),
    lambda net, x: net.a(x * (x > 0.5)) + net.b(net.table(x.argmax(-1))),
    lambda net, x: F.normalize(net.a(x)) + F.max_pool1d(net.b(x), 2).repeat(1, 2),
]


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("body", NONE)
def test_what_goes_on_evenly_is_no_choice(body, training):
    assert deciding(body, training) == {}
