"""One training step of a student: the adapter's, then its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from examples.exfm.distil.auxiliary_head import AuxiliaryHead
from examples.exfm.distil.student_adapter import StudentAdapter


@dataclass(frozen=True, eq=False)
class Batch:
    """B rows: ids (B, fields) and bag (B, most) int64; labels, logit (the teacher's), (B,) float32; scored (B,)
    bool."""

    ids: Tensor
    bag: Tensor
    labels: Tensor
    logit: Tensor
    scored: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def step(
    student: AuxiliaryHead,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    adapter: StudentAdapter | None = None,
    adapter_optimizer: torch.optim.Optimizer | None = None,
) -> float:
    """Steps 1 to 3 of student_adapter.py in their order, or step 3 alone without an adapter. Returns the student's
    loss.

    All three on one batch lets labels into the targets, but only through the adapter's few parameters ([I]).
    """
    target = None
    if adapter is not None:
        if adapter_optimizer is None:
            raise ValueError("an adapter needs an optimizer of its own")
        _descend(adapter.loss(batch.logit, batch.labels, batch.scored), adapter_optimizer)
        target = adapter.target(batch.logit)
    heads = student.heads(batch.ids, batch.bag)
    loss = student.loss(heads, batch.labels, batch.logit.sigmoid(), batch.scored, target)
    _descend(loss, optimizer)
    return loss.item()


def optimizer_of(module: nn.Module, rate: float, table_rate: float) -> torch.optim.Optimizer:
    """Adam. Rows of the tables are seen rarely, so they take larger steps."""
    tables = [each.weight for each in module.modules() if isinstance(each, nn.Embedding | nn.EmbeddingBag)]
    dense = [each for each in module.parameters() if all(each is not table for table in tables)]
    return torch.optim.Adam([{"params": dense, "lr": rate}, {"params": tables, "lr": table_rate}], fused=True)


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
