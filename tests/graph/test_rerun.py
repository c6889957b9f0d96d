"""Inputs for one more run of a graph: what it writes is copied, and where copies cannot stand in, that is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from loka_compile.graph.rerun import own_inputs, reason_against, written_inputs


def captured(fn, *args):
    found = []

    def backend(gm, inputs):
        found.append((gm.graph, inputs))
        return gm.forward

    torch.compile(fn, backend=backend, isolate_recompiles=True)(*args)
    return found[0]


class Moving(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean, self.weight = nn.Parameter(torch.zeros(4), requires_grad=False), nn.Parameter(torch.ones(4))

    def forward(self, x):
        with torch.no_grad():
            self.mean.view(2, 2).mul_(0.9)
        return (x - self.mean) * self.weight


def test_written_parameters_are_copied_and_others_are_not(fresh_dynamo):
    model = Moving()
    graph, inputs = captured(model, torch.randn(3, 4))
    own = dict(zip(map(id, inputs), own_inputs(inputs, written_inputs(graph)), strict=True))
    assert own[id(model.weight)] is model.weight
    assert own[id(model.mean)] is not model.mean and torch.equal(own[id(model.mean)], model.mean)
    assert not reason_against(inputs, written_inputs(graph))


@pytest.mark.parametrize(("write", "alike"), [(True, True), (True, False), (False, True)])
def test_copies_share_no_memory(fresh_dynamo, write, alike):
    x = torch.zeros(2, 4)
    other = x[1] if alike else torch.zeros(4)
    graph, inputs = captured(lambda a, b: (a.add_(1) if write else a + 1) + b, x[0], other)
    assert bool(reason_against(inputs, written_inputs(graph))) == (write and alike)
