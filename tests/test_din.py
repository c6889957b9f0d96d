"""A DIN as deepctr-torch writes it: one matrix of all features, of which every feature is a view, and graph breaks.

What a graph between two breaks is given is such a view: (B, 1) with strides (45, 1). Running the graph once more, to
race it or to learn from it, must hand over the like (graph/rerun.py), or Inductor's check of its inputs stops it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import loka_compile as loka

BATCH, LENGTH, WIDTH = 1024, 40, 8  # 45 columns: user, item, score, the history, its length
COLUMNS = {"user": (0, 1), "item": (1, 2), "score": (2, 3), "history": (3, 43), "length": (43, 44), "cost": (44, 45)}


class Dice(nn.Module):
    """DIN's own activation: x * p + alpha * x * (1 - p), p a sigmoid of the normalised x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.alpha = nn.BatchNorm1d(width, eps=1e-8), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        p = torch.sigmoid(self.norm(x.flatten(0, -2)).view_as(x))
        return self.alpha * (1 - p) * x + p * x


class DIN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(50, WIDTH), nn.Embedding(200, WIDTH)
        self.attention = nn.Sequential(nn.Linear(4 * WIDTH, 32), Dice(32), nn.Linear(32, 1))
        self.dense = nn.Linear(2, WIDTH)
        self.top = nn.Sequential(nn.Linear(4 * WIDTH, 64), nn.ReLU(inplace=True), nn.Linear(64, 16), Dice(16))
        self.head = nn.Linear(16, 1, bias=False)

    def of(self, x: Tensor, name: str) -> Tensor:
        first, last = COLUMNS[name]
        return x[:, first:last]

    def forward(self, x: Tensor) -> Tensor:
        length, dense = self.of(x, "length"), [self.of(x, "score").float(), self.of(x, "cost").float()]
        torch._dynamo.graph_break()  # deepctr looks its features up in dictionaries of its own
        item, keys = self.items(self.of(x, "item").long()), self.items(self.of(x, "history").long())
        torch._dynamo.graph_break()
        query = item.expand(-1, LENGTH, -1)
        scores = self.attention(torch.cat([query, keys, query - keys, query * keys], -1)).transpose(1, 2)
        mask = torch.arange(LENGTH) < length.long().unsqueeze(1)
        pooled = (torch.where(mask, scores, torch.zeros_like(scores)) @ keys).flatten(1)
        torch._dynamo.graph_break()
        rest = [self.users(self.of(x, "user").long()).flatten(1), item.flatten(1), self.dense(torch.cat(dense, -1))]
        return torch.sigmoid(self.head(self.top(torch.cat([*rest, pooled], -1))))


def batch(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda high, width=1: torch.randint(1, high, (BATCH, width), generator=generator).float()  # noqa: E731
    score, cost = torch.rand(2, BATCH, 1, generator=generator)
    return torch.cat([draw(50), draw(200), score, draw(200, LENGTH), draw(LENGTH), cost], 1)


def strides_between_breaks(model: nn.Module, x: Tensor) -> set[tuple[int, ...]]:
    found = set()

    def backend(gm: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        found.update(each.stride() for each in inputs if isinstance(each, Tensor) and each.shape == (BATCH, 1))
        return gm.forward

    torch.compile(model, backend=backend)(x)
    torch._dynamo.reset()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_din_with_breaks_and_strided_views(fresh_dynamo: None, training: bool) -> None:
    torch.manual_seed(0)
    model, x = DIN().train(training), batch(0)
    assert x.shape == (BATCH, 45)
    with torch.set_grad_enabled(training):
        assert (45, 1) in strides_between_breaks(copy.deepcopy(model), x)
        twin, compiled = copy.deepcopy(model), torch.compile(model, backend="loka")
        for seed in range(4):  # the first ones are measured, then there is a plan
            out, expected = compiled(batch(seed)), twin(batch(seed))
            torch.testing.assert_close(out, expected, rtol=0.1, atol=0.05)
            if training:
                for each, net in ((out, model), (expected, twin)):
                    net.zero_grad()
                    (each - 0.5).square().mean().backward()
                wanted = {name: each.grad for name, each in twin.named_parameters()}
                for name, each in model.named_parameters():
                    error = (each.grad - wanted[name]).norm() / wanted[name].norm().clamp(min=1e-4)
                    assert error < 0.2, (name, error)
    assert loka.explain(compiled)
