"""Permutation importances of features by task, many features a call.

A feature's importance for a task is how much the task's log loss rises when the feature's values are dealt to other
rows. All (feature, repeat) pairs times all rows make one long list, which is cut into calls of one size: a compiled
model sees a single shape, and small samples do not leave it idle. `predict` is any callable, `torch.compile(model,
backend="loka")` among them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


@dataclass(frozen=True)
class Feature:
    """Columns of one of the model's inputs that are permuted together; no columns: all of the input."""

    name: str
    input: int
    columns: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Importances:
    """mean (F, T): rise of the log loss; sigma (F, T): its standard error over the rows."""

    features: tuple[Feature, ...]
    mean: Tensor
    sigma: Tensor


@torch.no_grad()
def permutation_importances(
    predict: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    labels: Tensor,
    features: tuple[Feature, ...],
    *,
    repeats: int = 1,
    batch: int = 8192,
    seed: int = 0,
) -> Importances:
    """predict(*inputs) gives logits (B, T). labels (N, T); nan where a row says nothing about a task (another
    domain's).

    Permutations are drawn once a repeat and shared by all features.
    """
    count, tasks = labels.shape
    if not count or not features:
        raise ValueError(f"importances need rows and features, got {count} rows and {len(features)} features")
    generator = torch.Generator().manual_seed(seed)
    permutations = torch.stack([torch.randperm(count, generator=generator) for _ in range(repeats)])
    known = ~labels.isnan()
    seen = known.sum(0).clamp(min=1)
    plain = _losses(predict, inputs, labels, batch)
    rise, squares = (torch.zeros(len(features) * repeats, tasks, dtype=torch.float64) for _ in range(2))
    for start in range(0, len(features) * repeats * count, batch):
        flat = torch.arange(start, start + batch).clamp(max=len(features) * repeats * count - 1)
        copy, row = flat // count, flat % count
        mixed = [column[row] for column in inputs]
        for each in range(int(copy[0]), int(copy[-1]) + 1):
            part = copy == each
            feature, rows = features[each // repeats], permutations[each % repeats][row[part]]
            _permute(mixed[feature.input], inputs[feature.input], feature, part, rows)
        change = _loss(predict(*mixed), labels[row]) - plain[row]
        real = min(batch, len(features) * repeats * count - start)  # the last call is filled up
        rise.index_add_(0, copy[:real], change[:real])
        squares.index_add_(0, copy[:real], change[:real] ** 2)
    mean = rise / seen
    variance = (squares / seen - mean**2).clamp(min=0)
    by_feature = mean.unflatten(0, (-1, repeats)), variance.unflatten(0, (-1, repeats))
    return Importances(features, by_feature[0].mean(1), (by_feature[1].mean(1) / seen).sqrt())


def columns_of(names: tuple[str, ...], input: int) -> tuple[Feature, ...]:
    """One feature a column."""
    return tuple(Feature(name, input, (column,)) for column, name in enumerate(names))


def _permute(mixed: Tensor, original: Tensor, feature: Feature, part: Tensor, rows: Tensor) -> None:
    if not feature.columns:
        mixed[part] = original[rows]
    for column in feature.columns:
        mixed[part, column] = original[rows, column]


def _losses(predict: Callable[..., Tensor], inputs: tuple[Tensor, ...], labels: Tensor, batch: int) -> Tensor:
    """(N, T) losses of the rows as they are, in calls of the same size."""
    found = []
    for start in range(0, len(labels), batch):
        rows = torch.arange(start, start + batch) % len(labels)
        part = _loss(predict(*(column[rows] for column in inputs)), labels[rows])
        found.append(part[: len(labels) - start])
    return torch.cat(found)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, T) log losses in double precision, 0 where there is no label."""
    loss = binary_cross_entropy_with_logits(logits.double(), labels.nan_to_num().double(), reduction="none")
    return loss.masked_fill(labels.isnan(), 0.0)
