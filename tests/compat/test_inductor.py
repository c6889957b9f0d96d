"""Graphs inside of a graph go as written: our passes see the outer one alone."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention

from loka_compile import compat

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

weight = torch.randn(16, 16)


def branches(x):
    x = F.linear(x, weight)
    return torch.cond(x.sum() > 0, lambda x: F.linear(x, weight), lambda x: F.linear(x, weight).relu(), (x,))


def attends(x):
    heads = F.linear(x, weight).view(2, 8, 2, 8).transpose(1, 2)
    return flex_attention(heads, heads, heads, score_mod=lambda score, b, h, i, j: score + (i - j).abs())


@pytest.mark.parametrize("function", [branches, attends])
@torch.no_grad()
def test_passes_see_the_outer_graph_alone(function):
    seen, ran = [], []

    def backend(gm: fx.GraphModule, inputs):
        def inner(graph, is_backward):
            ran.append(len(graph.graph.find_nodes(op="placeholder")))
            return graph.forward

        return compat.capture(gm, inputs, joint=seen.append, inner=inner)

    torch.compile(function, backend=backend)(torch.randn(16, 16))
    [graph] = seen
    assert [len(graph.find_nodes(op="placeholder"))] == ran
    assert len(graph.find_nodes(op="call_function", target=torch.ops.aten.mm.default)) == 1


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.yes, self.no = (nn.Linear(64, 64) for _ in range(3))

    def forward(self, x):
        x = self.first(x)
        return torch.cond(x.sum() > 0, self.yes, lambda x: self.no(x).relu(), (x,))


@torch.no_grad()
def test_a_plan_for_a_graph_with_branches_is_tried_and_followed(tmp_path, monkeypatch):
    """The graph that was tried was that of a branch, on the whole graph's inputs: an error of sizes."""
    monkeypatch.setenv("LOKA_CACHE_DIR", str(tmp_path))
    model, x = Branches().eval(), torch.randn(128, 64)
    options = {"recipes": ("int8_rowwise",), "min_speedup": 0, "max_output_error": 0.05, "measure_calls": 1}
    compiled = torch.compile(model, backend="loka", options=options)
    for _ in range(2):
        for each in (x, -x):
            expected = model(each)
            assert (compiled(each) - expected).norm() < 0.05 * expected.norm()
