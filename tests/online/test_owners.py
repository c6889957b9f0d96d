"""Whose call it is: another instance or replaced weights are noticed, training steps are not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from loka_compile.online.owners import Owners, speaks

LOWERS = {"recipes": ("int8_rowwise",), "min_speedup": 0, "race": False}
"""On any CPU, fast or not."""


def inputs_of(module: nn.Module) -> list[Tensor]:
    return [torch.randn(4, 8), *module.parameters()]


def test_the_plan_holds_for_the_parameters_it_was_made_for() -> None:
    mine, other = nn.Linear(8, 4), nn.Linear(8, 4)
    owners = Owners(inputs_of(mine))
    for training in (True, False):
        assert owners.know(inputs_of(mine), training)
        assert not owners.know(inputs_of(other), training)


def test_another_instance_is_known_after_enough_checks() -> None:
    mine, other = nn.Linear(8, 4), nn.Linear(8, 4)
    owners = Owners(inputs_of(mine))
    for _ in range(3):
        assert not owners.know(inputs_of(other), False)
        owners.checked(inputs_of(other), enough=3)
    assert owners.know(inputs_of(other), False)
    assert owners.know(inputs_of(mine), False)


def test_training_steps_do_not_replace_parameters() -> None:
    module = nn.Linear(64, 64)
    owners = Owners(inputs_of(module))
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-2)
    for _ in range(20):
        module(torch.randn(16, 64)).square().mean().backward()
        optimizer.step()
        assert owners.know(inputs_of(module), False)


def load(module: nn.Linear, state: dict[str, Tensor]) -> None:
    module.load_state_dict(state)


def assign(module: nn.Linear, state: dict[str, Tensor]) -> None:
    module.load_state_dict(state, assign=True)


def through_data(module: nn.Linear, state: dict[str, Tensor]) -> None:
    module.weight.data = state["weight"].clone()


@pytest.mark.parametrize("replace", [load, assign, through_data])
def test_weights_that_are_loaded_replace_parameters(replace) -> None:
    module = nn.Linear(64, 64)
    owners = Owners(inputs_of(module))
    replace(module, nn.Linear(64, 64).state_dict())
    assert not owners.know(inputs_of(module), False)


def test_an_address_that_is_given_away_again_is_not_taken_for_the_old_parameter() -> None:
    module = nn.Linear(8, 4)
    owners = Owners(inputs_of(module))
    places = tuple(map(id, module.parameters()))
    owner = owners._known.pop(places)
    other = nn.Linear(8, 4)
    owners._known[tuple(map(id, other.parameters()))] = owner  # as if its ids were those of the old ones
    assert not owners.know(inputs_of(other), False)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((torch.zeros(0, 8),), False),
        ((torch.zeros(16, 8),), False),
        ((torch.full((16, 8), 2.5),), False),
        ((torch.randn(16, 8),), True),
        ((torch.zeros(16, 8), torch.randn(16, 8)), True),
        ((torch.randn(16, 8), torch.zeros(0, 3)), False),
        ((torch.zeros(16, dtype=torch.int64),), True),
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
