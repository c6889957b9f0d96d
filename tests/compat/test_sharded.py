"""Under FSDP2 a graph is called with whole parameters, which are not the module's own between calls."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from loka_compile import compat
from loka_compile.inspect.compiled import graphs_of

pytestmark = pytest.mark.usefixtures("fresh_dynamo", "op_by_op")


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x):
        return self.fc(x).relu()


@pytest.fixture
def sharded(tmp_path, monkeypatch):
    from torch.distributed.fsdp import fully_shard

    monkeypatch.setenv("LOKA_CACHE_DIR", str(tmp_path))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    torch.manual_seed(0)

    def make(width):
        model = nn.Sequential(Block(width), Block(width))
        for each in model:
            fully_shard(each)
        return fully_shard(model)

    yield make
    dist.destroy_process_group()


def test_before_a_call_there_are_none_but_its_own(sharded):
    model = sharded(32)
    assert [*compat.parameters_at_calls(model)] == [*model.parameters()]
    model(torch.randn(8, 32))
    assert len([*compat.parameters_at_calls(model)]) == 2 * len([*model.parameters()])


def test_explain_shows_the_instances_own_graphs(sharded):
    """All four layers are called with one Dynamo graph."""
    models = [sharded(32), sharded(32)]
    compiled = [torch.compile(model, backend="loka") for model in models]
    for model, call in zip(models, compiled, strict=True):
        call(torch.randn(64, 32, requires_grad=True)).square().mean().backward()
        own = {id(each) for each in compat.parameters_at_calls(model)}
        layers = graphs_of(call)
        assert len(layers) == 2
        assert all(set(graph.parameters) <= own for graph in layers)
