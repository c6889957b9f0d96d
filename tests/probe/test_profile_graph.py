"""A profile from inside a backend call: one run on the real inputs, of which nothing else notices."""

import pytest
import torch
from torch import nn

from loka_compile.probe.session import ProbeError, profile_graph


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Changing(nn.Module):
    """Everything a run may change: buffers, a parameter written in place, random state."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.dropout = nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.count = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, x):
        self.count.add_(1)
        return self.dropout(self.norm(self.layer(x)))


@pytest.mark.parametrize("grad", [True, False])
def test_profile_graph_changes_nothing(grad):
    profiles, model = [], Changing()

    def backend(gm, inputs):
        before = [x.clone() if isinstance(x, torch.Tensor) else x for x in inputs]
        state, code = torch.get_rng_state(), gm.code
        profiles.append(profile_graph(gm, inputs, ["fp16", "fp8_rowwise"]))
        assert torch.is_grad_enabled() == grad
        assert torch.equal(torch.get_rng_state(), state)
        assert gm.code == code
        for x, was in zip(inputs, before, strict=True):
            assert torch.equal(x, was) if isinstance(x, torch.Tensor) else x is was
        return gm.forward

    compiled = torch.compile(model, backend=backend)
    with torch.set_grad_enabled(grad):
        for size in (5, 8):
            compiled(torch.randn(size, 6))
    assert model.count == 2
    assert [list(p.sites) for p in profiles] == [["layer#0:output"]] * 2
    assert [p.sites["layer#0:output"].observed_M for p in profiles] == [5, 8]
    assert profiles[0].sites["layer#0:output"].site.static_rhs


def test_profile_graph_without_gemms():
    profiles = []

    def backend(gm, inputs):
        profiles.append(profile_graph(gm, inputs))
        return gm.forward

    torch.compile(lambda x: x + 1, backend=backend)(torch.ones(3))
    assert not profiles[0].sites


def test_fake_inputs_are_refused():
    from torch._subclasses import FakeTensorMode

    gm = torch.fx.symbolic_trace(lambda x: x + 1)
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(torch.ones(3))
    with pytest.raises(ProbeError, match="real inputs"):
        profile_graph(gm, [fake])
