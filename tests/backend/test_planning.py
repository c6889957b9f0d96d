"""Planning leaves no trace: results, statistics, random state and inputs are the model's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import loka_compile as loka
from loka_compile.probe.score import sqnr_db
from tests.backend.models import MLP


@pytest.fixture
def profiled():
    """A model, its probe's profile, and a plan of it."""
    torch.manual_seed(0)
    model, x = MLP(32, 64, 48), torch.randn(64, 32)
    with loka.probe(model) as probe, torch.no_grad():
        model(x)
    return model, x, probe.profile


def test_a_profile_becomes_a_plan(profiled, op_by_op):
    model, x, profile = profiled
    compiled = torch.compile(model, backend="loka", options={"profile": profile, "min_speedup": 0})
    with torch.no_grad():
        out = compiled(x)
    assert loka.plan(compiled).lowered and sqnr_db(out, model(x)) > 20


@pytest.mark.parametrize("dynamic", [None, True], ids=["static", "dynamic"])
def test_no_configuration_at_all(dynamic, op_by_op):
    model, x = MLP(32, 64, 48), torch.randn(64, 32)
    kept = x.clone()
    compiled = torch.compile(model, backend="loka", dynamic=dynamic, options={"min_speedup": 0, "measure_calls": 0})
    with torch.no_grad():
        assert sqnr_db(compiled(x), model(x)) > 20
        if dynamic:
            with torch.compiler.set_stance("fail_on_recompile"):
                assert sqnr_db(compiled(x[:37]), model(x[:37])) > 20
    assert torch.equal(x, kept)
    assert loka.plan(compiled).lowered and loka.plan(compiled).origin == "a look at the first batch, forward only"


def test_no_configuration_in_generated_code():
    model, x = MLP(32, 64, 48), torch.randn(64, 32)
    compiled = torch.compile(model, backend="loka")
    with torch.no_grad():
        for _ in range(4):  # three are measured, the fourth is planned
            assert sqnr_db(compiled(x), model(x)) > 20
    assert set(loka.plan(compiled).decisions) == {"layers.0#0:output", "layers.1#0:output"}


def test_fused_loops_that_do_not_split_alike():
    """Inductor's C++ generator alone fails on this (torch 2.13), as on a gradient in blocks along both its axes."""

    def both(x, s, t):
        return x * s.repeat_interleave(128, -1), x.mT * t.repeat_interleave(128, -1)

    args = torch.randn(256, 384), torch.randn(256, 3), torch.randn(384, 2)
    compiled = torch.compile(both, backend="loka", options={"recipes": ()})
    for ours, eager in zip(compiled(*args), both(*args), strict=True):
        torch.testing.assert_close(ours, eager)


def test_running_statistics_are_updated_once_a_call(op_by_op):
    model, x = MLP(32, 64, 48, norm=True), torch.randn(64, 32)
    twin = MLP(32, 64, 48, norm=True)
    twin.load_state_dict(model.state_dict())
    options = {"recipes": ("bf16",), "min_speedup": 0, "measure_calls": 0}
    compiled = torch.compile(model, backend="loka", options=options)
    for _ in range(2):
        compiled(x), twin(x)
    assert loka.plan(compiled).lowered
    assert model.norm.num_batches_tracked == 2
    torch.testing.assert_close(model.norm.running_mean, twin.norm.running_mean, rtol=2e-2, atol=1e-3)


def test_the_random_state_is_the_models_own(op_by_op):
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(32, 48)

        def forward(self, x):
            return F.dropout(self.fc(x), 0.5, self.training)

    model, x = Dropping(), torch.randn(64, 32)
    compiled = torch.compile(model, backend="loka", options={"min_speedup": 0, "measure_calls": 0})
    outs = []
    for _ in range(2):  # the first call plans, the second does not
        torch.manual_seed(3)
        outs.append((compiled(x).detach(), torch.get_rng_state()))
    assert loka.plan(compiled).lowered
    assert torch.equal(outs[0][0], outs[1][0]) and torch.equal(outs[0][1], outs[1][1])
    dropped = (outs[0][0] == 0).float().mean()
    assert 0.45 < dropped < 0.55

    model.eval()
    state = torch.get_rng_state()
    with torch.no_grad():
        compiled(x)
    assert torch.equal(torch.get_rng_state(), state)


def test_inputs_a_model_writes_to_are_written_once(op_by_op):
    def step(state, x, w):
        state.add_(1)
        return x @ w + state

    state, x, w = torch.zeros(48), torch.randn(5, 32), torch.randn(32, 48)
    compiled = torch.compile(step, backend="loka", options={"min_speedup": 0, "measure_calls": 0})
    with torch.no_grad():
        compiled(state, x, w)
    assert torch.equal(state, torch.ones(48))
