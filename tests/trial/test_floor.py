"""Below a graph's time: its products, and attention that Inductor calls as it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from loka_compile.dispatch import kept_times
from loka_compile.trial import floor
from loka_compile.trial.budget import Trial
from loka_compile.trial.floor import floor_of, floor_us, library_us


class Attention(nn.Module):
    """times: as often on the same values, and once on others."""

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        self.project, self.times = nn.Linear(32, 32), times

    def forward(self, x):
        h = self.project(x)
        return sum(scaled_dot_product_attention(h, h, h) for _ in range(self.times)) + (
            scaled_dot_product_attention(h, h, x) if self.times > 1 else 0
        )


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOKA_CACHE_DIR", str(tmp_path))
    forget()
    yield
    forget()


def forget():
    kept_times._file.cache_clear()
    kept_times.times.cache_clear()


def floors(model: nn.Module, *, dynamic: bool = False) -> dict[str, float]:
    """Of the graph that a backend is given."""
    found: dict[str, float] = {}

    def backend(gm, inputs):
        trial = Trial(gm, inputs)
        found["all"], found["products"] = floor_of(trial, inputs)(), floor_us(trial.sites, inputs)
        found["library"] = library_us(trial.graph, inputs)
        return gm.forward

    torch.compiler.reset()
    with torch.no_grad():
        torch.compile(model, backend=backend, dynamic=dynamic)(torch.randn(3, 4, 16, 32))
    return found


@pytest.mark.parametrize("dynamic", [False, True])
def test_attention_counts_beside_the_products(dynamic):
    found = floors(Attention(), dynamic=dynamic)
    assert found["products"] > 0 and found["library"] > 0
    assert found["all"] == pytest.approx(found["products"] + found["library"])


def test_calls_of_the_same_values_count_once(monkeypatch):
    monkeypatch.setattr(floor.timing, "call_us", lambda name, make: 1000.0 * bool(make()()))
    assert floors(Attention(times=3))["library"] == 2000.0


def test_a_graph_without_any_has_the_floor_of_its_products():
    found = floors(nn.Linear(32, 32))
    assert found["library"] == 0 and found["all"] == found["products"] > 0
