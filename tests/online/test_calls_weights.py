"""Whose plan a call runs: of equal layers each its own, of weights loaded again, handed over or swapped theirs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import loka_compile as loka
from examples.apart import APART
from loka_compile.online.pace import AT_LEAST
from tests.online.calls import LOWERS, compiled_with, graphs, lowered, mlp, off

pytestmark = [pytest.mark.usefixtures("fresh_dynamo", "op_by_op", "home")]


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 64)

    def forward(self, x):
        return self.fc(x)


def raw(rows=256):
    x = torch.randn(rows, 64)
    x[:, 0] *= 3e4
    return x


@torch.no_grad()
def test_equal_layers_one_by_one_each_have_their_own_plan():
    torch.manual_seed(0)
    layers = [Layer() for _ in range(5)]
    layers[3].fc.weight[:, 0] = 0  # ignores the feature that is raw in its data: int8 is not for it
    compiled = [compiled_with(each) for each in layers]
    for _ in range(6):
        for number, (each, layer) in enumerate(zip(compiled, layers, strict=True)):
            x = raw() if number == 3 else torch.randn(256, 64)
            assert off(each(x), layer(x)) < 0.05
    assert [lowered(each) for each in compiled] == [1, 1, 1, 0, 1]


@torch.no_grad()
@pytest.mark.parametrize("apart", [APART, {}], ids=["a graph each", "one graph"])
def test_what_strays_with_one_instance_is_demoted_for_it_alone(home, apart):
    def compiled_with(model, **options):
        return torch.compile(model, backend="loka", options={**LOWERS, **options}, **apart)

    torch.manual_seed(0)
    one, other = Layer(), Layer()
    other.fc.weight[:, 0] = 0
    served, serving = (compiled_with(each, max_probe_overhead=1e6) for each in (one, other))
    for _ in range(6):
        served(torch.randn(256, 64)), serving(torch.randn(256, 64))
    with pytest.warns(UserWarning, match="strayed"):
        for _ in range(3 * AT_LEAST):
            serving(raw())
    assert off(serving(x := raw()), other(x)) < 0.05
    assert lowered(served) == 1 and lowered(serving) == 0
    torch.compiler.reset()  # as a restart
    again = [compiled_with(each) for each in (one, other)]
    for _ in range(6):
        for each in again:
            each(torch.randn(256, 64))
    assert [lowered(each) for each in again] == [1, 0]


@torch.no_grad()
def test_weights_that_are_loaded_again_take_the_plan_over():
    module = Layer()
    compiled = compiled_with(module)
    for _ in range(5):
        compiled(torch.randn(256, 64))
    module.load_state_dict(Layer().state_dict())
    outs = []
    for _ in range(6):
        x = torch.randn(256, 64)
        outs.append(off(compiled(x), module(x)))
    assert outs[:3] == [0.0] * 3 and all(0 < out < 0.05 for out in outs[3:])
    assert graphs() == 1 and lowered(compiled) == 1


@torch.no_grad()
def test_weights_that_are_handed_over_are_told_apart():
    """functional_call: the same code, and parameters that are plain tensors."""
    module = Layer()
    weights = [{name: p.detach().clone() for name, p in each.named_parameters()} for each in (module, Layer())]
    weights[1]["fc.weight"][:, 0] = 0
    compiled = compiled_with(lambda given, x: torch.func.functional_call(module, given, (x,)))
    for _ in range(5):
        compiled(weights[0], x := torch.randn(256, 64))
    assert off(compiled(weights[0], x), torch.func.functional_call(module, weights[0], (x,))) > 0
    for _ in range(6):
        x = raw()
        assert off(compiled(weights[1], x), torch.func.functional_call(module, weights[1], (x,))) < 0.05


def test_training_goes_on_under_the_plan():
    module = Layer()
    compiled, optimizer = compiled_with(module), torch.optim.Adam(module.parameters(), lr=0.1)
    exact = 0
    for _ in range(12):
        x = torch.randn(64, 64)
        out = compiled(x)
        exact += torch.equal(out, module(x))
        out.square().mean().backward()
        optimizer.step()
    assert exact == 3 and graphs() == 1


@torch.no_grad()
def test_a_reset_forgets_what_was_learned():
    module, x = Layer(), torch.randn(64, 64)
    for _ in range(2):
        compiled = compiled_with(module)
        exact = [torch.equal(compiled(x), module(x)) for _ in range(5)]
        assert exact == [True] * 3 + [False] * 2
        torch.compiler.reset()


@torch.no_grad()
def test_a_plan_for_one_row_is_made_anew_for_thousands():
    module = Layer()
    compiled = compiled_with(module, dynamic=False)
    sessions = []
    for rows in (1, 1, 1, 1, 4096, 4096, 4096, 4096, 1):
        compiled(torch.randn(rows, 64))
        sessions.append(loka.explain(compiled).notes[0])
    assert "planned after 3" in sessions[3] and "1 of 3 calls measured" in sessions[4] and "planned" in sessions[-1]
    assert graphs() == 2


# ---------------------------------------------------------------- weights that are swapped


@pytest.fixture
def swapping():
    """`Module.to` and `load_state_dict` swap parameters, which PyTorch refuses while anybody refers to them weakly."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_weights_may_be_swapped_at_any_time(swapping, training):
    model, x = mlp(), torch.randn(16, 32)
    compiled = compiled_with(model, max_gradient_error=1.0)

    def called():
        with torch.set_grad_enabled(training):
            out = compiled(x)
        if training:
            out.sum().backward()
            model.zero_grad()
        return out.detach()

    for calls in (1, 5, 5):  # measured, planned, and planned anew
        for _ in range(calls):
            assert off(called(), model(x)) < 0.05
        model.load_state_dict(mlp(seed=calls).state_dict())
        assert off(called(), model(x)) < 0.05
        model.double().float()
        assert off(called(), model(x)) < 0.05
        torch.utils.swap_tensors(model[0].weight, nn.Parameter(torch.randn(64, 32)))
    for _ in range(5):
        assert off(called(), model(x)) < 0.05
    assert lowered(compiled)


@torch.no_grad()
def test_what_is_made_of_a_weight_once_is_made_anew_when_it_is_swapped(swapping):
    model, x = mlp().requires_grad_(False), torch.randn(16, 32)
    compiled = compiled_with(model)
    for _ in range(5):
        compiled(x)
    assert lowered(compiled) == 2
    torch.utils.swap_tensors(model[0].weight, nn.Parameter(torch.randn(64, 32), False))
    assert off(compiled(x), model(x)) < 0.05


@torch.no_grad()
def test_who_calls_is_told_where_nothing_is_lowered():
    """Such calls take the short way, which knows whose it is."""
    models, x = (mlp(0), mlp(1)), torch.randn(64, 32)
    options = {**LOWERS, "max_mere": 1e-9}
    calls = [torch.compile(model, backend="loka", dynamic=False, options=options) for model in models]
    for _ in range(6):
        for call, model in zip(calls, models, strict=True):
            torch.testing.assert_close(call(x), model(x))
    for call in calls:
        assert not lowered(call)
        assert any("planned after 3 measured calls" in note for note in loka.explain(call).notes)
