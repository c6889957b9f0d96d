"""PLE (Tang et al., "Progressive Layered Extraction", RecSys 2020): experts of each task beside shared ones, in layers.

At every layer a task's gate weighs its own and the shared experts, and the shared gate all of them; towers read the
last layer.

Shapes: B batch, n tokens (one a field, one for the bag), d their width, E experts, w an expert's width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.models.dlrm import Tokens
from examples.models.wukong import mlp


class Extraction(nn.Module):
    """One layer: what each task and, unless it is the last layer, the shared part read, to what they read next."""

    def __init__(self, size: int, expert: tuple[int, ...], tasks: int, own: int, shared: int, last: bool) -> None:
        super().__init__()
        self.own = nn.ModuleList(_experts(size, expert, own) for _ in range(tasks))
        self.shared = _experts(size, expert, shared)
        self.gates = nn.ModuleList(nn.Linear(size, own + shared) for _ in range(tasks))
        self.shared_gate = None if last else nn.Linear(size, tasks * own + shared)

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """inputs: of each task, (B, size), and behind them the shared one."""
        *tasks, common = inputs
        shared = [expert(common) for expert in self.shared]
        own = [[expert(x) for expert in experts] for x, experts in zip(tasks, self.own, strict=True)]
        mixed = [_weighed(gate(x), [*e, *shared]) for gate, x, e in zip(self.gates, tasks, own, strict=True)]
        if self.shared_gate is not None:
            mixed.append(_weighed(self.shared_gate(common), [*(each for e in own for each in e), *shared]))
        return mixed


def _experts(size: int, widths: tuple[int, ...], count: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Sequential(mlp(size, *widths, dropout=0.0), nn.ReLU()) for _ in range(count))


def _weighed(scores: Tensor, experts: list[Tensor]) -> Tensor:
    return (scores.softmax(1).unsqueeze(1) @ torch.stack(experts, dim=1)).squeeze(1)


class PLE(nn.Module):
    """Categorical fields and one bag of categories to logits of the tasks; arguments as for MMoE. own, shared: experts
    of each task, and of all."""

    def __init__(
        self,
        cardinalities: tuple[int, ...],
        bag: int,
        *,
        width: int = 64,
        layers: int = 2,
        own: int = 2,
        shared: int = 2,
        expert: tuple[int, ...] = (512, 256),
        tower: tuple[int, ...] = (256,),
        tasks: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.tokens, self.tasks = Tokens(cardinalities, bag, width), tasks
        sizes = [(len(cardinalities) + 1) * width, *[expert[-1]] * (layers - 1)]
        self.layers = nn.ModuleList(
            Extraction(size, expert, tasks, own, shared, last=size_index == layers - 1)
            for size_index, size in enumerate(sizes)
        )
        self.towers = nn.ModuleList(mlp(expert[-1], *tower, 1, dropout=dropout) for _ in range(tasks))

    def forward(self, ids: Tensor, bag: Tensor) -> Tensor:
        """ids (B, fields) and bag (B, most) of int64 to the logits of all tasks, (B, tasks)."""
        x = self.tokens(ids, bag).flatten(1)
        inputs = [x] * (self.tasks + 1)
        for layer in self.layers:
            inputs = layer(inputs)
        return torch.cat([tower(each) for tower, each in zip(self.towers, inputs, strict=True)], dim=1)
