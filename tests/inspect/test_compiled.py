"""The graphs of a torch.compile result are found again, whatever became of its parameters meanwhile."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import loka_compile as loka

pytestmark = pytest.mark.usefixtures("fresh_dynamo", "op_by_op")
OPTIONS = {"target": "h100", "min_speedup": 0, "recipes": ("fp8_rowwise",), "measure_calls": 0, "max_output_error": 1.0}


def sequential():
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Sequential(nn.Linear(32, 16)))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = sequential()

    def forward(self, x):
        return self.body(x)


@pytest.fixture(autouse=True)
def seeded():
    """Of random layers one in fifty misses the error budget."""
    torch.manual_seed(0)


def assigned(model):
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)


@pytest.mark.parametrize("kind", [sequential, Model])
@pytest.mark.parametrize("called", [False, True])
def test_after_weights_were_loaded_by_assignment(kind, called):
    model, x = kind(), torch.randn(16, 32)
    compiled = torch.compile(model, backend="loka", options=OPTIONS)
    with torch.no_grad():
        compiled(x)
        before = loka.explain(compiled).rows
        assigned(model)
        if called:
            compiled(x)
    assert len(before) == 2 and loka.explain(compiled).rows == before
    assert len(loka.plan(compiled).lowered) == 2


def test_each_of_two_models_finds_its_own():
    x = torch.randn(16, 32)
    models = [sequential(), nn.Sequential(nn.Linear(32, 8), nn.ReLU())]
    compiled = [torch.compile(model, backend="loka", options=OPTIONS) for model in models]
    with torch.no_grad():
        for each in compiled:
            each(x)
        for model in models:
            assigned(model)
    assert [len(loka.explain(each).rows) for each in compiled] == [2, 1]


def test_sites_are_those_of_the_autocast_that_it_was_compiled_in():
    model, x = sequential(), torch.randn(16, 32)
    compiled = torch.compile(model, backend="loka", options=OPTIONS)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        compiled(x)
    rows = loka.explain(compiled).rows
    assert [row.key for row in rows] == ["0#0:output", "2.0#0:output"]
    assert not [row.reason for row in rows if "no decision" in row.reason]
    assert all(site.dtype == torch.bfloat16 for record in loka.records(compiled) for site in record.sites)
