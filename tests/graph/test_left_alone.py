"""Programs that Inductor runs and loka cannot lower: they go to Inductor as written, and explain says why."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops import effects

import loka_compile as loka

LOWERS = {"recipes": ("int8_rowwise",), "min_speedup": 0, "race": False}
"""On any CPU, fast or not."""


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("LOKA_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Lookup(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.table, self.fc = nn.Embedding(50, 16, sparse=sparse), nn.Linear(16, 16)

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(self.table(ids))


def same_gradients(module: nn.Module, run: Callable[..., Any], *args: Tensor) -> None:
    """Those of `run` are the module's own, to rounding, and sparse where those are."""
    module.zero_grad()
    run(*args).square().sum().backward()
    sparse = [p.grad.is_sparse for p in module.parameters()]
    found = [p.grad.to_dense() if p.grad.is_sparse else p.grad for p in module.parameters()]
    module.zero_grad()
    module(*args).square().sum().backward()
    assert sparse == [p.grad.is_sparse for p in module.parameters()]
    for mine, p in zip(found, module.parameters(), strict=True):
        expected = p.grad.to_dense() if p.grad.is_sparse else p.grad
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


def test_sparse_gradients() -> None:
    module = Lookup(sparse=True)
    compiled = torch.compile(module, backend="loka", options=LOWERS)
    for _ in range(4):
        same_gradients(module, compiled, torch.randint(0, 50, (32,)))
    assert "sparse" in loka.explain(compiled).origin


def test_a_sparse_table_in_inference_is_lowered() -> None:
    module = Lookup(sparse=True).eval()
    compiled = torch.compile(module, backend="loka", options={**LOWERS, "measure_calls": 0})
    with torch.no_grad():
        compiled(torch.randint(0, 50, (32,)))
    assert any(row.lowered for row in loka.explain(compiled).rows)


def test_a_batch_whose_size_is_unbacked() -> None:
    module = nn.Linear(16, 16)
    compiled = torch.compile(module, backend="loka", options=LOWERS)
    with torch.no_grad():
        for rows in (20, 1, 2, 30):
            x = torch.randn(rows, 16)
            torch._dynamo.decorators.mark_unbacked(x, 0)
            torch.testing.assert_close(compiled(x), module(x), rtol=1e-4, atol=1e-4)
    assert "unbacked" in loka.explain(compiled).origin


@torch._dynamo.config.patch(compiled_autograd=True)
def test_compiled_autograd() -> None:
    module = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))

    def step(x: Tensor) -> None:
        module(x).square().mean().backward()

    compiled, x = torch.compile(step, backend="loka", options=LOWERS), torch.randn(32, 16)
    for _ in range(5):
        module.zero_grad()
        compiled(x)
    found = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    step(x)
    for mine, p in zip(found, module.parameters(), strict=True):
        torch.testing.assert_close(mine, p.grad, rtol=0.1, atol=1e-2)


@pytest.mark.parametrize("options", [{}, {"recipes": (), "race": False}, {"measure_calls": 0}])
def test_the_step_of_an_optimizer_is_taken_once(options: dict[str, Any]) -> None:
    """Its graph holds the parameters that it writes."""
    module = nn.Linear(4, 3)
    twin = copy.deepcopy(module)
    ours, eagers = (torch.optim.SGD(each.parameters(), 0.05, momentum=0.9) for each in (module, twin))
    step = torch.compile(ours.step, backend="loka", options=options)
    for _ in range(3):
        x = torch.randn(8, 4)
        for each in (module, twin):
            each.zero_grad()
            each(x).square().mean().backward()
        step()
        eagers.step()
        torch.testing.assert_close(module.weight, twin.weight)


CALLS: list[int] = []


@torch.library.custom_op("loka_tests::counted", mutates_args=())
def counted(x: Tensor) -> Tensor:
    CALLS.append(len(x))
    return x.clone()


@counted.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@pytest.mark.parametrize("options", [{}, LOWERS, {"recipes": ()}, {"measure_calls": 0}])
@pytest.mark.parametrize("op", [counted, torch.ops.loka_tests.counted, torch.ops.loka_tests.counted.default])
def test_an_effect_happens_once_a_call(op: Callable[[Tensor], Tensor], options: dict[str, Any]) -> None:
    """An op that is registered to have one, which its schema does not tell."""
    registered = effects._register_effectful_op("loka_tests::counted", effects._EffectType.ORDERED)
    try:
        fc = nn.Linear(16, 16).eval()
        compiled = torch.compile(lambda x: fc(op(x)), backend="loka", options=options, dynamic=False)
        CALLS.clear()
        with torch.no_grad():
            for call in range(6):
                x = torch.randn(32, 16)
                torch.testing.assert_close(compiled(x), fc(x))
                assert len(CALLS) == call + 1
        assert "has an effect beside its result" in loka.explain(compiled).origin
    finally:
        registered.destroy()
