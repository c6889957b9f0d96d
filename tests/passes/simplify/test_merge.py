"""merge: what becomes one linear, for which targets and sizes, what stays and why, and the same numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from examples.models.mmoe import MMoE
from loka_compile.passes import Context
from loka_compile.passes.simplify._rates import SMS, TILE, Rates, gemm_seconds
from loka_compile.passes.simplify.merge import Merge
from loka_compile.spec.plan import Plan
from tests.passes.exact import agrees, named, rewritten

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

H100 = Context(Plan("h100", {}), "cpu")
B = 7


class Heads(nn.Module):
    def __init__(self, widths=(3, 16, 5), bias=True):
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleList(nn.Linear(4, width, bias=bias) for width in widths)

    def forward(self, x):
        return tuple(F.relu(part(x).view(*x.shape[:-1], -1)) for part in self.parts)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dynamic", [None, True])
def test_linears_of_one_tensor_become_one_widest_first(bias, dynamic):
    seen = agrees(Merge(), Heads(bias=bias), torch.randn(B, 4), dynamic=dynamic, context=H100)
    assert seen.did == [("parts.1, parts.2, parts.0", "one linear of 3")]
    [linear] = named(seen.graphs[0], F.linear)
    assert linear.meta["example_value"].shape[-1] == 24
    assert [node.args[2] for node in named(seen.graphs[0], "narrow")] == [21, 0, 16]


def test_the_first_layers_and_gates_of_mmoe():
    model = MMoE((5, 7), 3, width=4, experts=3, expert=(8, 8), tower=(8,), dropout=0.0).eval()
    ids, bag = torch.randint(5, (B, 2)), torch.randint(3, (B, 2))
    seen = agrees(Merge(), model, ids, bag, context=H100)
    assert seen.did == [("experts.0.0.0, experts.1.0.0, experts.2.0.0, gates.0", "one linear of 4")]


def test_on_a_cpu_they_stay():
    seen = rewritten(Merge(), Heads(), torch.randn(B, 4))
    assert not seen.did and seen.reasons[0].startswith("on a CPU, copying the weights")


def test_large_weights_of_few_rows_cost_more_to_copy_than_launches_save():
    model = nn.ModuleList([nn.Linear(2048, 2048), nn.Linear(2048, 2048)])
    seen = rewritten(Merge(), lambda x: (model[0](x), model[1](x)), torch.randn(2, 2048), context=H100)
    assert not seen.did and "(modelled)" in seen.reasons[0]


def test_what_reads_another_tensor_or_makes_its_weight_is_no_part_of_it():
    def others(x, y, w, v):
        return F.linear(x, w), F.linear(y, w), F.linear(x, v * 2)

    x, w = torch.randn(B, 4), torch.randn(3, 4)
    seen = rewritten(Merge(), others, x, x * 2, w, w + 1, context=H100)
    assert not seen.did and not seen.reasons


def test_a_tensor_written_between_them_keeps_them_apart():
    def between(x, w, v):
        a = F.linear(x, w)
        x.add_(1)
        return a, F.linear(x, v)

    x, w, v = torch.randn(B, 4), torch.randn(3, 4), torch.randn(3, 4)
    expected = between(x.clone(), w, v)
    seen = rewritten(Merge(), between, x, w, v, context=H100)
    assert not seen.did and "in place" in seen.reasons[0]
    torch.testing.assert_close(seen.out, expected)


def test_what_writes_to_its_own_output_still_may():
    def gated(x, w, v):
        a = F.relu(F.linear(x, w), inplace=True)
        a += F.linear(x, v)
        return a

    args = torch.randn(B, 4), torch.randn(3, 4), torch.randn(3, 4)
    seen = rewritten(Merge(), gated, *args, context=H100)
    assert seen.did
    torch.testing.assert_close(seen.out, gated(*args))


def test_a_part_of_a_wave_takes_as_long_as_a_wave():
    r = Rates(flops=1e12, bandwidth=1e30, launch=0.0)
    one = gemm_seconds(r, TILE, 64, TILE, torch.float32)
    assert one == gemm_seconds(r, TILE, 64, TILE * SMS, torch.float32)
    assert 2 * one == gemm_seconds(r, TILE, 64, TILE * SMS + 1, torch.float32)


@given(st.lists(st.integers(1, 9), min_size=4, max_size=6), st.booleans(), st.sampled_from([(B,), (3, 2)]))
@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.generate],  # each example is compiled: shrinking one takes minutes
)
def test_any_widths(widths, bias, rows):
    torch._dynamo.reset()
    seen = agrees(Merge(), Heads(widths, bias), torch.randn(*rows, 4), context=H100)
    assert len(seen.did) == 1


def test_a_weight_of_one_dimension_is_no_matrix():
    def fn(x, v, w):
        return F.linear(x, v), F.linear(x, w)

    seen = rewritten(Merge(), fn, torch.randn(4, 8), torch.randn(8), torch.randn(8), context=H100)
    assert not seen.did and not seen.reasons
