"""Whose call it is: another instance or replaced weights are noticed, training steps are not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from loka_compile.online.owner import Owner, speaks

LOWERS = {"recipes": ("int8_rowwise",), "min_speedup": 0, "race": False}
"""On any CPU, fast or not."""


def weights_of(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def test_the_plan_holds_for_the_parameters_it_was_made_for() -> None:
    mine = nn.Linear(8, 4)
    owner = Owner(weights_of(mine))
    for training in (True, False):
        assert not owner.replaced(weights_of(mine), training)


@pytest.mark.parametrize("evaluates", [False, True], ids=["training", "evaluated after each step"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.Adagrad])
def test_training_steps_do_not_replace_parameters(kind, evaluates) -> None:
    """However far they go."""
    module = nn.Linear(64, 64)
    owner = Owner(weights_of(module))
    optimizer = kind(module.parameters(), lr=1.0)
    for _ in range(20):
        module(torch.randn(16, 64)).square().mean().backward()
        optimizer.step()
        assert not owner.replaced(weights_of(module), training=not evaluates)


def test_steps_of_ones_own_are_told_by_a_sample() -> None:
    module = nn.Linear(64, 64)
    owner = Owner(weights_of(module))
    for _ in range(20):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.sub_(1e-3 * torch.randn_like(parameter))
        assert not owner.replaced(weights_of(module), training=True)
    module.load_state_dict(nn.Linear(64, 64).state_dict())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.sub_(1e-3)
    assert owner.replaced(weights_of(module), training=True)


def load(module: nn.Module, state: dict[str, Tensor]) -> None:
    module.load_state_dict(state)


def through_data(module: nn.Module, state: dict[str, Tensor]) -> None:
    for parameter, key in zip(module.parameters(), state, strict=True):
        parameter.data = state[key].clone()


def behind_the_version(module: nn.Module, state: dict[str, Tensor]) -> None:
    for parameter, key in zip(module.parameters(), state, strict=True):
        parameter.data.copy_(state[key])


REPLACERS = [load, through_data, behind_the_version]


@pytest.mark.parametrize("replace", REPLACERS)
@pytest.mark.parametrize("much", [1.0, 1e-3])
def test_weights_that_are_loaded_replace_parameters_however_alike_they_are(replace, much) -> None:
    module = nn.Linear(64, 64)
    owner = Owner(weights_of(module))
    state = {key: value + much * torch.randn_like(value) for key, value in module.state_dict().items()}
    assert not owner.replaced(weights_of(module), False)
    replace(module, state)
    assert owner.replaced(weights_of(module), False)
    owner.take(weights_of(module))
    assert not any(owner.replaced(weights_of(module), False) for _ in range(5))


@pytest.mark.parametrize("replace", REPLACERS[:2])
def test_a_checkpoint_that_is_loaded_between_training_steps(replace) -> None:
    module = nn.Linear(64, 64)
    owner = Owner(weights_of(module))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for step in range(6):
        module(torch.randn(16, 64)).square().mean().backward()
        optimizer.step()
        if step == 4:
            replace(module, nn.Linear(64, 64).state_dict())
        assert owner.replaced(weights_of(module), True) is (step == 4)
        if step == 4:
            owner.take(weights_of(module))


def test_a_tensor_that_keeps_changing_is_compared_by_its_sample() -> None:
    """A moving average of weights that is evaluated after each update."""
    module = nn.Linear(64, 64)
    owner = Owner(weights_of(module))
    found = []
    for _ in range(8):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.lerp_(torch.randn_like(parameter) / 8, 1e-3)
        found.append(owner.replaced(weights_of(module), False))
        if found[-1]:
            owner.take(weights_of(module))
    assert found == [True] * 3 + [False] * 5
    module.load_state_dict(nn.Linear(64, 64).state_dict())
    assert owner.replaced(weights_of(module), False)


def test_buffers_count_in_inference_as_parameters_do() -> None:
    module = nn.BatchNorm1d(8)
    owner = Owner(weights_of(module), written=())
    module.running_var.mul_(1e4)
    assert owner.replaced(weights_of(module), False)


def test_what_the_graph_writes_itself_tells_nothing() -> None:
    module = nn.BatchNorm1d(8)
    tensors = weights_of(module)
    owner = Owner(tensors, written=range(2, len(tensors)))
    module(torch.randn(4, 8))
    assert not owner.replaced(weights_of(module), False)


def test_what_only_may_be_a_weight_is_data_if_it_changes_while_calls_are_measured() -> None:
    weight, other = torch.randn(8, 8), torch.randn(8, 8)
    owner = Owner([weight], loose=[0])
    assert not owner.replaced([weight], False, measuring=True) and owner.replaced([other], False)
    owner.take([other])
    assert not any(owner.replaced([torch.randn(8, 8)], False, measuring=measuring) for measuring in (True, False))


def test_an_owner_that_died_is_not_taken_for_another_with_its_address() -> None:
    module = nn.Linear(8, 4)
    owner = Owner(weights_of(module))
    assert owner.alive
    del module
    assert not owner.alive


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((torch.zeros(0, 8),), False),
        ((torch.zeros(16, 8),), False),
        ((torch.full((16, 8), 2.5),), False),
        ((torch.randn(16, 8),), True),
        ((torch.zeros(16, 8), torch.randn(16, 8)), True),
        ((torch.randn(16, 8), torch.zeros(0, 3)), False),
        ((torch.randn(16, 8), torch.zeros(16, 0)), True),  # columns that a model does not have
        ((torch.zeros(16, 0),), True),
        ((torch.zeros(16, dtype=torch.int64),), True),
        ((torch.ones(16, 8), torch.arange(16)), True),  # ids, and a mask that lets all of them through
        ((torch.ones(16, 8), torch.arange(16) > 3), True),
        ((torch.ones(16, 8), torch.zeros(16, dtype=torch.int64)), False),
        ((nn.Parameter(torch.zeros(4, 4)), torch.randn(2, 4)), True),
    ],
)
def test_which_calls_speak(args, says) -> None:
    assert speaks(args) is says


# ---------------------------------------------------------------- through the backend


@pytest.fixture
def fresh(tmp_path, monkeypatch) -> Iterator[None]:
    monkeypatch.setenv("LOKA_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def off(out: Tensor, reference: Tensor) -> float:
    return float((out - reference).norm() / reference.norm())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


@torch.no_grad()
def test_a_plan_of_one_instance_does_not_serve_another(fresh) -> None:
    one, other = Net().eval(), Net().eval()
    other.fc.weight[:, 0] = 0  # it ignores the feature that is raw in its data
    served, serving = (torch.compile(each, backend="loka", options=LOWERS) for each in (one, other))
    x = torch.randn(256, 64)
    raw = x.clone()
    raw[:, 0] *= 3e4
    for _ in range(5):
        assert off(served(x), one(x)) < 0.05
    assert max(off(serving(raw), other(raw)) for _ in range(6)) < 0.05
    assert off(served(x), one(x)) < 0.05


@torch.no_grad()
def test_weights_loaded_after_the_plan_are_checked_first(fresh) -> None:
    module, trained = Net().eval(), Net().eval()
    compiled = torch.compile(module, backend="loka", options=LOWERS)
    for _ in range(5):
        compiled(torch.randn(256, 64))
    trained.fc.weight[:, 0] = 0
    module.load_state_dict(trained.state_dict())
    for _ in range(6):
        x = torch.randn(256, 64)
        x[:, 0] *= 3e4
        assert off(compiled(x), module(x)) < 0.05
