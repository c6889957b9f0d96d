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
    count. alone: rows that do not, as no other row of their group has a value for them."""

    features: tuple[Feature, ...]
    mean: Tensor
    sigma: Tensor
    alone: int = 0


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

    Permutations are drawn once a repeat and shared by all features; none leaves a row its own value. within: (N,) a
    group for each row; values are dealt to rows of the same group only, so that none comes from a domain where it
    cannot occur. A row that is alone in its group is left out, and counted.
    """
    count, tasks = labels.shape
    if not count or not features or repeats < 1:
        raise ValueError(
            f"importances need rows, features and repeats, got {count} rows, {len(features)} features and {repeats}"
        )
    generator = torch.Generator().manual_seed(seed)
    groups = torch.zeros(count, dtype=torch.int64) if within is None else within.unique(return_inverse=True)[1]
    drawn = [torch.randperm(count, generator=generator) for _ in range(repeats)]
    gives = torch.stack([dealt(order, groups, generator) for order in drawn])
    alone = groups.bincount()[groups] == 1
    plain = _losses(predict, inputs, labels, batch)
    mean, sigma = (torch.zeros(len(features), tasks, dtype=torch.float64) for _ in range(2))
    total = len(features) * repeats * count
    of_feature = _Mean(~labels.isnan() & ~alone[:, None], gives)
    rises = torch.zeros(repeats, count, tasks, dtype=torch.float64)  # of one feature
    for start in range(0, total, batch):
        flat = torch.arange(start, start + batch).clamp(max=total - 1)  # the last call is filled up
        copy, row = flat // count, flat % count
        copies = range(int(copy[0]), int(copy[-1]) + 1)
        mixed = [column[row] for column in inputs]
        for each in copies:
            part = copy == each
            feature, rows = features[each // repeats], gives[each % repeats][row[part]]
            _permute(mixed[feature.input], inputs[feature.input], feature, part, rows)
        change = _loss(predict(*mixed), labels[row]) - plain[row]
        for each in copies:
            part = copy == each
            rises[each % repeats, row[part]] = change[part]
            if (each + 1) % repeats == 0 and int(row[part][-1]) == count - 1:  # the feature's last row is in
                mean[each // repeats], sigma[each // repeats] = of_feature(rises)
    return Importances(features, mean, sigma, int(alone.sum()))


def dealt(drawn: Tensor, groups: Tensor, generator: torch.Generator) -> Tensor:
    """(N,) the row of the same group that each row's value comes from: every other one with the same chance, and its
    own only if it is alone. drawn: the rows in a random order."""
    order = torch.argsort(groups, stable=True)  # group by group
    found = torch.empty_like(drawn)
    found[order] = drawn[torch.argsort(groups[drawn], stable=True)]
    sizes = groups.bincount()
    starts = (sizes.cumsum(0) - sizes)[groups]
    own = (found == torch.arange(len(found))) & (sizes[groups] > 1)  # about one a group
    mended = own.nonzero().squeeze(1)
    mended = mended[torch.randperm(len(mended), generator=generator)]
    others = (torch.rand(len(mended), generator=generator) * (sizes[groups[mended]] - 1)).long() + starts[mended]
    others = order[others + (others >= torch.argsort(order)[mended])]  # any but itself
    gives = found.tolist()
    for row, other in zip(mended.tolist(), others.tolist(), strict=True):
        if gives[row] == row:  # else it has been another's other
            gives[row], gives[other] = gives[other], row
    return torch.tensor(gives)


class _Mean:
    """The mean over rows that count (N, T), and its standard error, of what a feature's permutations change.

    A change hangs on two rows, the one that takes a value and the one that gives it, so two changes vary together where
    they share a row. The variance of the sum is that of the sums by row, in which what shares both rows is counted
    twice, less that of the sums by pair of rows. It is right for any groups and repeats.
    """

    def __init__(self, counts: Tensor, gives: Tensor) -> None:
        self._counts, self._gives, self._repeats = counts, gives.flatten(), len(gives)
        rows = torch.arange(len(counts))
        pairs = torch.minimum(gives, rows) * len(rows) + torch.maximum(gives, rows)
        self._pair = pairs.unique(return_inverse=True)[1].flatten()

    def __call__(self, rises: Tensor) -> tuple[Tensor, Tensor]:
        """(T,) of rises (repeats, N, T)."""
        seen = self._counts.sum(0)
        mean = rises.mean(0).where(self._counts, 0.0).sum(0) / seen.clamp(min=1)
        off = (rises - mean).where(self._counts, 0.0)
        by_row = off.sum(0).index_add_(0, self._gives, off.flatten(0, 1))
        by_pair = torch.zeros(int(self._pair.max()) + 1, off.shape[2], dtype=off.dtype)
        by_pair.index_add_(0, self._pair, off.flatten(0, 1))
        variance = (by_row.square().sum(0) - by_pair.square().sum(0)).clamp(min=0) / self._repeats**2
        error = (variance / (seen - 1).clamp(min=1) / seen).sqrt()
        return mean, error.masked_fill(seen < 2, torch.inf)


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
