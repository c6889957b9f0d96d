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
    """mean (F, T): rise of the log loss; sigma (F, T): its standard error over the rows, inf where fewer than two rows
    have a label."""

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
    within: Tensor | None = None,
) -> Importances:
    """predict(*inputs) gives logits (B, T). labels (N, T); nan where a row says nothing about a task (another
    domain's).

    Permutations are drawn once a repeat and shared by all features. within: (N,) a group for each row; values are
    dealt to rows of the same group only, so that none comes from a domain where it cannot occur.
    """
    count, tasks = labels.shape
    if not count or not features or repeats < 1:
        raise ValueError(
            f"importances need rows, features and repeats, got {count} rows, {len(features)} features and {repeats}"
        )
    generator = torch.Generator().manual_seed(seed)
    permutations = torch.stack([_permutation(count, within, generator) for _ in range(repeats)])
    known = ~labels.isnan()
    plain = _losses(predict, inputs, labels, batch)
    mean, sigma = (torch.zeros(len(features), tasks, dtype=torch.float64) for _ in range(2))
    total = len(features) * repeats * count
    rises = _Rises(known, repeats)
    for start in range(0, total, batch):
        flat = torch.arange(start, start + batch).clamp(max=total - 1)  # the last call is filled up
        copy, row = flat // count, flat % count
        copies = range(int(copy[0]), int(copy[-1]) + 1)
        mixed = [column[row] for column in inputs]
        for each in copies:
            part = copy == each
            feature, rows = features[each // repeats], permutations[each % repeats][row[part]]
            _permute(mixed[feature.input], inputs[feature.input], feature, part, rows)
        real = min(batch, total - start)
        change, copy, row = (_loss(predict(*mixed), labels[row]) - plain[row])[:real], copy[:real], row[:real]
        for each in copies:
            part = copy == each
            rises.add(change[part], row[part], permutations[each % repeats][row[part]])
            if (start + real) // count > each and (each + 1) % repeats == 0:  # the feature's last row is in
                mean[each // repeats], sigma[each // repeats] = rises.mean_and_error()
                rises = _Rises(known, repeats)
    return Importances(features, mean, sigma)


class _Rises:
    """What one feature's permutations change, by the row that takes a value and by the row that gives it."""

    def __init__(self, known: Tensor, repeats: int) -> None:
        self._known, self._repeats = known, repeats
        self._taken, self._given, self._squares = (torch.zeros(known.shape, dtype=torch.float64) for _ in range(3))

    def add(self, change: Tensor, takes: Tensor, gives: Tensor) -> None:
        self._taken.index_add_(0, takes, change)
        self._given.index_add_(0, gives, change)
        self._squares.index_add_(0, gives, change.square())

    def mean_and_error(self) -> tuple[Tensor, Tensor]:
        """(T,) means over the known rows, and their standard errors.

        Every row counts twice, by its label and by the value that it gives to others, so its error does too: with many
        repeats the mean varies by the sum of both, as a U-statistic's. With few, what single pairs have of their own
        comes on top; it is in what a row takes already, and is left out of what it gives.
        """
        seen, repeats = self._known.sum(0).clamp(min=1), self._repeats
        taken, given = self._taken / repeats, self._given / repeats
        mean = taken.sum(0) / seen
        own = (taken - mean).masked_fill(~self._known, 0.0)
        other = given - given.mean(0)
        pairs = (self._squares - repeats * given.square()).sum(0) / max(repeats - 1, 1) / repeats
        lasting = (other.square().sum(0) - pairs).clamp(min=0) * (1 - 1 / repeats)
        variance = (own.square().sum(0) + lasting + 2 * (own * other).sum(0)).clamp(min=0)
        error = (variance / (seen - 1).clamp(min=1) / seen).sqrt()
        return mean, error.masked_fill(self._known.sum(0) < 2, torch.inf)


def _permutation(count: int, within: Tensor | None, generator: torch.Generator) -> Tensor:
    """(N,) the row that each row's value comes from."""
    drawn = torch.randperm(count, generator=generator)
    if within is None:
        return drawn
    found = torch.empty(count, dtype=torch.int64)
    found[torch.argsort(within, stable=True)] = drawn[torch.argsort(within[drawn], stable=True)]
    return found


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
