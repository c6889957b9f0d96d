"""A frame is compiled several times over: no compilation may take another's metadata for its own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import fx, nn
from torch._guards import TracingContext, tracing

from loka_compile import compat

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def captured(gm, inputs):
    return compat.capture(gm, inputs, joint=lambda graph: None, inner=lambda module, _: fx.Interpreter(module).run)


def compiled(gm, inputs):
    nothing = lambda graph: None  # noqa: E731
    return compat.compile_inductor(gm, inputs, joint=nothing, post_grad=nothing, uuid="", patches={})[0]


@pytest.mark.parametrize("compile", [captured, compiled])
def test_each_compilation_has_a_context_apart_and_leaves_its_metadata(compile, monkeypatch):
    """A backward that is compiled when it first runs looks for the tensors it may write into in the context of its own
    compilation. Who asked for the compilation (Dynamo's DDP optimizer) looks in the one around."""

    def backend(gm, inputs):
        context = TracingContext.get()
        context.fw_metadata, inside = mark, []
        with monkeypatch.context() as patch:
            patch.setattr(torch._guards, "tracing", lambda other: inside.append(other) or tracing(other))
            run = compile(gm, inputs)
        assert TracingContext.get() is context and inside and all(each is not context for each in inside)
        assert context.fw_metadata is not mark and context.fw_metadata.num_outputs == 1
        return run

    mark, x = object(), torch.randn(3, requires_grad=True)
    torch.compile(torch.sin, backend=backend)(x).sum().backward()
    torch.testing.assert_close(x.grad, x.cos())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.gain = nn.Linear(32, 32), nn.Linear(32, 32), nn.Parameter(torch.ones(32))

    def forward(self, x):
        y = self.a(x)
        x = x + nn.functional.gelu(y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain)
        y = self.b(x)
        mean, variance = y.mean(-1, keepdim=True), y.var(-1, keepdim=True, unbiased=False)
        return x + ((y - mean) / torch.sqrt(variance + 1e-5) * self.gain).tanh()


@pytest.mark.slow
def test_training_online_leaves_the_parameters():
    """A planned graph's backward, compiled after the graph was traced again to be watched."""
    torch.manual_seed(0)
    model = Net()
    before = copy.deepcopy(model.state_dict())
    options = {"min_speedup": 0.0, "race": False, "measure_calls": 1, "recipes": ("int8_rowwise",)}
    step = torch.compile(model, backend="loka", options=options)
    for _ in range(3):
        out = step(torch.randn(64, 32))
        (out * torch.randn_like(out)).sum().backward()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
