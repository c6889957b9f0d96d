"""Training and judging: one pass with Adam, as examples/training.py has it, through the model or what compiled it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from examples.kunlun import flops
from examples.lattice.networks.loss import Objective
from examples.lattice.networks.samples import Samples
from examples.lattice.networks.untie import for_domain
from examples.metrics import auc, normalized_entropy
from examples.training import evaluating, fit

SERVED = 4096
JUDGED = 50  # test rows of a portfolio that is judged, at least


def train(
    model: nn.Module,
    call: Callable[..., Tensor],
    found: Samples,
    rows: Tensor,
    objective: Objective,
    *,
    epochs: int | None = None,
    batch: int | None = None,
    total: int | None = None,
) -> Iterator[float]:
    """Epochs over `rows` through `call`, by default as many as the data ask for, in an order that torch's seed draws.
    What is left of a batch waits for the next epoch's draw, so that all steps have one shape. A step is taken for each
    loss that is asked for; in the end, or when that is broken off, the model is in eval mode. Without rows nothing is
    learned. total: steps, in place of epochs."""
    if not len(rows):
        model.eval()
        return iter(())
    epochs, batch = epochs or found.passes.epochs, min(batch or found.passes.batch, len(rows))
    if total is not None:
        epochs = -(-total // (len(rows) // batch))
    parts = [rows[order] for _ in range(epochs) for order in _order(len(rows), batch)][:total]
    return fit(model, (found.batch(part) for part in parts), call, len(parts), objective)


def steps(count: int, epochs: int, batch: int) -> int:
    """How many steps `train` takes over so many rows."""
    return epochs * (count // min(batch, count)) if count else 0


def _order(count: int, batch: int) -> list[Tensor]:
    return list(torch.randperm(count)[: count // batch * batch].split(batch))


@torch.no_grad()
def predict(call: Callable[..., Tensor], found: Samples, rows: Tensor, batch: int = SERVED) -> Tensor:
    """Logits (n, T) in eval mode; the last call is filled up by starting over, so that all have one shape."""
    if not len(rows):
        return torch.zeros(0, len(found.tasks))
    batch = min(batch, len(rows))
    filled = rows[torch.arange(-(-len(rows) // batch) * batch) % len(rows)]
    with evaluating(call):
        return torch.cat([call(*found.batch(part)[0]).float() for part in filled.split(batch)])[: len(rows)]


def judge(found: Samples, rows: Tensor, logits: Tensor) -> dict[str, dict[str, float]]:
    """AUC and NE by portfolio, "domain: task", of those with JUDGED rows or more and labels of both kinds."""
    scores = {}
    for domain, its_name in enumerate(found.domains):
        for task, name in enumerate(found.tasks):
            own = (found.inputs.domain[rows] == domain) & ~found.labels[rows, task].isnan()
            z, y = logits[own, task], found.labels[rows[own], task]
            if len(y) >= JUDGED and 0 < float(y.mean()) < 1:
                scores[f"{its_name}: {name}"] = {"auc": auc(z, y), "ne": normalized_entropy(z, y)}
    return scores


@torch.no_grad()
def flops_of(model: nn.Module, found: Samples, rows: int = 8) -> float:
    """FLOPs of one served row, matrix products and attention: of the model as it serves one domain. Data of fewer rows
    than are counted start over."""
    served = for_domain(model, found.schema.own[0]).eval()
    inputs, _ = found.batch(torch.arange(rows) % len(found.labels))
    return flops.count(lambda: served(*inputs)) / rows


def parameters(model: nn.Module) -> tuple[int, int]:
    """Of tables, and of all else."""
    tables = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag))
    return tables, sum(p.numel() for p in model.parameters()) - tables
