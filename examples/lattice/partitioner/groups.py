"""Models of groups of portfolios, trained and judged: what a partition is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from examples.lattice.data import Data, DataError, Rows, hide_unseen
from examples.lattice.partitioner.describe import Portfolio, gradient, sketch
from examples.lattice.partitioner.partition import Group
from examples.metrics import auc
from examples.models.dlrm import Tokens
from examples.models.wukong import mlp

WIDTH, BATCH, RATE = 8, 256, 2e-3
TRAININGS, MOMENTS, FOLDS, ROWS = 4, 25, 8, 128
"""Trainings of the shared model; moments of each at which gradients are looked at; folds of a portfolio's rows; rows of
a fold's gradient, at most. One training has a way of its own, on which two portfolios may oppose each other by chance
that more rows do not make smaller."""
NEWTON = 5
"""Steps to a head's offset."""


@dataclass(frozen=True)
class Key:
    """A portfolio's domain and task."""

    domain: int
    task: int


class Shared(nn.Module):
    """One backbone for all portfolios of a group, one linear head each."""

    def __init__(self, data: Data, heads: int, hidden: int) -> None:
        super().__init__()
        self.tokens = Tokens(data.cardinalities, data.bag, WIDTH)
        self.backbone = nn.Sequential(mlp(_inputs(data), hidden, hidden, dropout=0.0), nn.ReLU())
        self.heads = nn.Linear(hidden, heads)

    def forward(self, ids: Tensor, bag: Tensor, dense: Tensor) -> Tensor:
        """(B, heads)."""
        return self.heads(self.backbone(torch.cat([self.tokens(ids, bag).flatten(1), dense], dim=1)))


def keys_of(data: Data) -> list[Key]:
    """All portfolios of a data set."""
    return [Key(domain, task) for domain in range(len(data.domains)) for task in range(len(data.tasks))]


def name_of(data: Data, key: Key) -> str:
    return f"{data.domains[key.domain]}: {data.tasks[key.task]}"


def hidden_for(data: Data, flops: float, heads: int) -> int:
    """The width of a backbone of at most so many FLOPs a sample, at least 4: 2 (inputs h + h h + h heads)."""
    linear = _inputs(data) + heads
    return max(4, int((-linear + (linear**2 + 2 * flops) ** 0.5) / 2))


def flops_of(data: Data, hidden: int, heads: int) -> int:
    """FLOPs of a sample: the matrix products alone."""
    return 2 * (_inputs(data) * hidden + hidden * hidden + hidden * heads)


def loss_of(model: nn.Module, rows: Rows, keys: Sequence[Key]) -> Tensor:
    """Mean log loss over the (row, portfolio) pairs that belong together and have a label; 0 if there is none."""
    logits = model(*rows.inputs)
    labels = torch.stack([rows.labels[:, key.task] for key in keys], dim=1)
    own = torch.stack([rows.domain == key.domain for key in keys], dim=1) & ~labels.isnan()
    if not bool(own.any()):
        return 0.0 * logits.sum()
    return binary_cross_entropy_with_logits(logits[own], labels[own])


def fit(
    data: Data,
    keys: Sequence[Key],
    hidden: int,
    seed: int,
    epochs: int,
    look: Callable[[Shared], None] | None = None,
    steps: int | None = None,
) -> Shared:
    """A model of these portfolios, trained on the rows that say something about one of them, for so many epochs or, if
    that is said, steps. look: is shown it MOMENTS times, at every step where there are fewer."""
    torch.manual_seed(seed)
    model = Shared(data, len(keys), hidden)
    optimizer = torch.optim.Adam(model.parameters(), RATE, fused=True)
    rows = learned(data, keys)
    count = steps_of(data, keys, epochs) if steps is None or not len(rows) else steps
    moments = {moment * count // MOMENTS for moment in range(MOMENTS)}
    for step, part in enumerate(islice(_batches(len(rows)), count)):
        if look is not None and step in moments:
            look(model)
        loss = loss_of(model, rows[part], keys)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def learned(data: Data, keys: Sequence[Key]) -> Rows:
    """The rows that a model of these portfolios is trained on: those that say something about one of them."""
    return data.train[_labelled(data.train, keys)]


def steps_of(data: Data, keys: Sequence[Key], epochs: int) -> int:
    """How many steps `fit` takes in so many epochs."""
    return epochs * -(-int(_labelled(data.train, keys).sum()) // BATCH)


@torch.no_grad()
def judge(data: Data, model: nn.Module, keys: Sequence[Key]) -> dict[Key, float]:
    """AUC by portfolio on the test rows of its domain, in which is UNKNOWN what a model of these portfolios has not
    learned. Raises DataError for one that cannot be judged."""
    logits = model(*hide_unseen(data.test, learned(data, keys)).inputs)
    found = {}
    for place, key in enumerate(keys):
        labels = data.test.labels[:, key.task]
        own = (data.test.domain == key.domain) & ~labels.isnan()
        if labels[own].unique().numel() < 2:
            raise DataError(
                f"{name_of(data, key)} has {int(own.sum())} test rows, without labels of both kinds: leave it out of "
                "the keys, it cannot be judged"
            )
        found[key] = auc(logits[own, place], labels[own])
    return found


def describe(data: Data, keys: Sequence[Key], flops: float, delays: Sequence[float], seed: int) -> list[Portfolio]:
    """Portfolios as the clustering wants them. Users and items are those of rows with a label; revenue is taken to be
    the number of positives; gradients are those of the backbone of a model that is trained on all portfolios, TRAININGS
    times from other weights, on each portfolio's own rows. delays: by task, seconds until half of its feedback is
    there."""
    if len(delays) != len(data.tasks):
        raise ValueError(f"expected a delay for each of {len(data.tasks)} tasks, got {len(delays)}")
    own = {key.domain: data.train[data.train.domain == key.domain] for key in keys}
    folds = {domain: _folds(len(rows), seed + domain) for domain, rows in own.items()}
    found: list[list[Tensor]] = [[] for _ in keys]

    def look(model: Shared) -> None:
        for place, key in enumerate(keys):
            found[place].append(_gradients(model, own[key.domain], folds[key.domain], place, key))

    for training in range(TRAININGS):
        fit(data, keys, hidden_for(data, flops, len(keys)), seed * TRAININGS + training, 1, look)
    portfolios = []
    for key, gradients in zip(keys, found, strict=True):
        rows = own[key.domain]
        said = rows[_labelled(rows, [key])]
        users, items = sketch(said.users.unique()), sketch(said.items.unique())
        revenue = float(rows.labels[:, key.task].nansum())
        at_moments = torch.stack(gradients, dim=1)
        portfolios.append(Portfolio(name_of(data, key), users, items, delays[key.task], flops, revenue, at_moments))
    return portfolios


def evaluate(
    data: Data,
    keys: Sequence[Key],
    groups: Sequence[Group],
    flops: Sequence[float],
    seed: int,
    epochs: int,
    longer: bool = False,
) -> dict[Key, float]:
    """AUC by portfolio when each group has a model of its own, of so many FLOPs. longer: every model takes as many
    steps as one of all portfolios would, however few rows its group has."""
    found: dict[Key, float] = {}
    steps = steps_of(data, keys, epochs) if longer else None
    for group, budget in zip(groups, flops, strict=True):
        own = [keys[i] for i in group]
        model = fit(data, own, hidden_for(data, budget, len(own)), seed, epochs, steps=steps)
        found |= judge(data, model, own)
    return found


def _labelled(rows: Rows, keys: Sequence[Key]) -> Tensor:
    """(N,) which rows have a label of one of these portfolios."""
    return torch.stack([(rows.domain == key.domain) & ~rows.labels[:, key.task].isnan() for key in keys]).any(0)


def _batches(count: int) -> Iterator[Tensor]:
    """Places of rows, epoch after epoch without an end."""
    while True:
        yield from torch.randperm(count).split(BATCH)


def _folds(count: int, seed: int) -> Tensor:
    """(count,) the fold of each row. All tasks of a domain share it: their labels are of the same rows."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)) % FOLDS


def _gradients(model: Shared, own: Rows, folds: Tensor, place: int, key: Key) -> Tensor:
    """(FOLDS, P) by the backbone, each from rows of its own fold; zeros, which agree with nothing, where a fold has no
    row with a label."""
    known = ~own.labels[:, key.task].isnan()
    each = [(known & (folds == fold)).nonzero()[:, 0] for fold in range(FOLDS)]
    if not all(map(len, each)):
        return torch.zeros(FOLDS, sum(parameter.numel() for parameter in model.backbone.parameters()))
    drawn = (rows[torch.randperm(len(rows))[:ROWS]] for rows in each)
    losses = [_calibrated_loss(model, own[rows], place, key) for rows in drawn]
    return torch.stack([gradient(loss, model.backbone) for loss in losses])


def _calibrated_loss(model: Shared, rows: Rows, place: int, key: Key) -> Tensor:
    """The portfolio's loss with its head's offset set right first. A head that is off by a constant pulls at the
    backbone too, and drowns what the features want."""
    logits, labels = model(*rows.inputs)[:, place], rows.labels[:, key.task]
    offset = torch.zeros(())
    for _ in range(NEWTON):
        p = (logits.detach() + offset).sigmoid()
        offset = offset + (labels.mean() - p.mean()) / (p * (1 - p)).mean().clamp_min(1e-3)
    return binary_cross_entropy_with_logits(logits + offset, labels)


def _inputs(data: Data) -> int:
    return (len(data.cardinalities) + 1) * WIDTH + len(data.numbers)
