"""batch: which linears become one batched product, for which targets and sizes, what stays and why, the numbers."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from examples.models.mmoe import MMoE
from loka_compile.passes import Context
from loka_compile.passes.simplify._rates import SMS, TILE, Rates, gemm_seconds
from loka_compile.passes.simplify.batch import Batch
from loka_compile.spec.plan import Plan
from tests.passes.exact import agrees, named, rewritten

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

H100 = Context(Plan("h100", {}), "cpu")
B = 7


class Experts(nn.Module):
    """MLPs side by side, one after the other in the graph, each over its own slice of x (..., experts * width)."""

    def __init__(self, experts=6, widths=(4, 3, 5), bias=True, residual=False):
        super().__init__()
        torch.manual_seed(0)
        self.width, self.residual = widths[0], residual
        self.experts = nn.ModuleList(
            nn.ModuleList(nn.Linear(k, n, bias=bias) for k, n in pairwise(widths)) for _ in range(experts)
        )

    def forward(self, x):
        outs = []
        for expert, part in zip(self.experts, x.split(self.width, -1), strict=True):
            for layer in expert:
                new = F.relu(layer(part), inplace=True)
                part = part + new if self.residual and new.shape == part.shape else new
            outs.append(part)
        return torch.stack(outs).sum(0), *outs


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dynamic", [None, True])
def test_each_layer_of_all_experts_is_one_product(bias, dynamic):
    seen = agrees(Batch(), Experts(bias=bias), torch.randn(B, 24), dynamic=dynamic, context=H100)
    layers = [", ".join(f"experts.{expert}.{layer}" for expert in range(6)) for layer in range(2)]
    assert seen.did == [(names, "one batched product of 6") for names in layers]
    products = named(seen.graphs[0], torch.baddbmm if bias else torch.bmm)
    assert [tuple(node.meta["example_value"].shape)[::2] for node in products] == [(6, 3), (6, 5)]
    assert not named(seen.graphs[0], F.linear)


def test_the_second_layers_of_mmoes_experts_and_its_towers():
    model = MMoE((5, 7), 3, width=4, experts=6, expert=(8, 8), tower=(8,), tasks=6, dropout=0.0).eval()
    args = torch.randint(5, (B, 2)), torch.randint(3, (B, 2))
    seen = agrees(Batch(), Every(model), *args, context=H100)
    assert [did.split()[-1] for _, did in seen.did] == ["6", "6", "6"]  # the second layers, and both of the towers
    assert all(f"experts.{expert}.0.3" in seen.did[0][0] for expert in range(6))


class Every(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, bag):
        return self.model(ids, bag, every_task=True)


def test_on_a_cpu_they_stay():
    seen = rewritten(Batch(), Experts(), torch.randn(B, 24))
    assert not seen.did and seen.reasons[0].startswith("on a CPU, copying inputs and weights")


def test_large_ones_cost_more_to_copy_than_launches_save():
    seen = rewritten(Batch(), Experts(2, (2048, 2048)), torch.randn(2, 4096), context=H100)
    assert not seen.did and "(modelled)" in seen.reasons[0]


def test_a_layer_over_anothers_output_is_no_part_of_it():
    seen = rewritten(Batch(), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(B, 4), context=H100)
    assert not seen.did and not seen.reasons


def test_different_shapes_the_same_tensor_and_generated_weights_are_no_part_of_it():
    def others(x, y, w, v):
        return F.linear(x, w), F.linear(y, w), F.linear(x, v), F.linear(x, w * 2), F.linear(y[:3], w)

    x, w = torch.randn(B, 4), torch.randn(3, 4)
    seen = rewritten(Batch(), others, x, x[:5] + 1, w, torch.randn(2, 4), context=H100)
    assert not seen.did and not seen.reasons


def test_dropout_between_them_would_draw_later():
    class Dropping(Experts):
        def forward(self, x):
            parts = zip(self.experts, x.split(4, -1), strict=True)
            return tuple(F.dropout(expert[0](part), 0.5, self.training) for expert, part in parts)

    seen = rewritten(Batch(), Dropping(), torch.randn(B, 24), context=H100)
    assert not seen.did and "dropout draws random numbers" in seen.reasons[0]
    assert agrees(Batch(), Dropping().eval(), torch.randn(B, 24), context=H100).did


def test_a_tensor_written_between_them_keeps_them_apart():
    def between(x, y, w):
        outs = []
        for each in w:
            outs.append(F.linear(x, each))
            x, y = y, x.add_(1)
        return tuple(outs)

    x, y, w = torch.randn(B, 4), torch.randn(B, 4), tuple(torch.randn(3, 4) for _ in range(2))
    expected = between(x.clone(), y.clone(), w)
    seen = rewritten(Batch(), between, x, y, w, context=H100)
    assert not seen.did and "in place" in seen.reasons[0]
    torch.testing.assert_close(seen.out, expected)


def test_a_batch_shares_its_waves():
    r = Rates(flops=1e12, bandwidth=1e30, launch=0.0)
    one = gemm_seconds(r, TILE, 64, TILE, torch.float32)
    assert gemm_seconds(r, TILE, 64, TILE, torch.float32, SMS) == one
    assert gemm_seconds(r, TILE, 64, TILE, torch.float32, SMS + 1) == 2 * one


@given(
    experts=st.integers(5, 7),
    widths=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    bias=st.booleans(),
    residual=st.booleans(),
    rows=st.sampled_from([(B,), (3, 2), (2, 1, 3)]),
    dynamic=st.sampled_from([None, True]),
)
@settings(
    max_examples=5,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.generate],  # each example is compiled: shrinking one takes minutes
)
def test_any_experts(experts, widths, bias, residual, rows, dynamic):
    torch._dynamo.reset()
    model = Experts(experts, widths, bias, residual)
    seen = agrees(Batch(), model, torch.randn(*rows, experts * widths[0]), dynamic=dynamic, context=H100)
    assert len(seen.did) == len(widths) - 1
