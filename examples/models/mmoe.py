"""MMoE (Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts", KDD 2018).

Experts, plain MLPs, all read the same input. Every task has a gate that weighs the experts row by row, and a tower that
turns the weighted mean into the task's logit.

Shapes: B batch, n tokens (one a field, one for the bag), d their width, E experts, w an expert's width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples.models.dlrm import Tokens
from examples.models.wukong import mlp


class MMoE(nn.Module):
    """Categorical fields and one bag of categories to logits of two tasks; arguments as for DLRM.

    experts  how many there are
    expert   widths of each expert's layers
    tower    hidden widths of each task's tower
    """

    def __init__(
        self,
        cardinalities: tuple[int, ...],
        bag: int,
        *,
        width: int = 64,
        experts: int = 4,
        expert: tuple[int, ...] = (1024, 512),
        tower: tuple[int, ...] = (512,),
        tasks: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.tokens = Tokens(cardinalities, bag, width)
        size = (len(cardinalities) + 1) * width
        self.experts = nn.ModuleList(
            nn.Sequential(mlp(size, *expert, dropout=dropout), nn.ReLU()) for _ in range(experts)
        )
        self.gates = nn.ModuleList(nn.Linear(size, experts) for _ in range(tasks))
        self.towers = nn.ModuleList(mlp(expert[-1], *tower, 1, dropout=dropout) for _ in range(tasks))

    def forward(self, ids: Tensor, bag: Tensor, every_task: bool = False) -> Tensor:
        """ids (B, fields) and bag (B, most) of int64 to the first task's logits (B,), or to all of them, (B, tasks)."""
        x = self.tokens(ids, bag).flatten(1)  # (B, n d)
        experts = torch.stack([expert(x) for expert in self.experts], dim=1)  # (B, E, w)
        logits = []
        for gate, tower in zip(self.gates, self.towers, strict=True):
            weights = gate(x).softmax(dim=1).unsqueeze(1)  # (B, 1, E)
            logits.append(tower((weights @ experts).squeeze(1)))
            if not every_task:
                break
        return torch.cat(logits, dim=1) if every_task else logits[0].squeeze(1)
