"""Trains Wukong on MovieLens-100k: one pass with Adam, as the field does it.

The settings were chosen on the last 10 % of the training ratings, never on the test set; a second epoch already
overfits. See for yourself: `python -m examples.training --epochs 2`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from examples.metrics import quality
from examples.models.wukong import Wukong
from examples.movielens import FIELDS, MovieLens, Split, load

# How often training hides a field's value. Hidden most are those that mark one person: they do not come back.
ID_DROPOUT = {
    "user": 0.5,
    "age": 0.5,
    "gender": 0.5,
    "occupation": 0.5,
    "item": 0.3,
    "year": 0.3,
    "acclaim": 0.1,
}
BATCH = 1024
RATE, TABLE_RATE = 1e-3, 3e-3  # rows of the tables are seen rarely, so they take larger steps
WARM_UP = 0.1  # share of the steps in which the rates rise


def wukong(data: MovieLens, **sizes: object) -> Wukong:
    """A Wukong for this data."""
    id_dropout = tuple(ID_DROPOUT.get(field, 0.0) for field in FIELDS)
    return Wukong(data.cardinalities, data.genres, id_dropout=id_dropout, **sizes)


def steps(split: Split, epochs: int) -> int:
    """How many steps `train` will take."""
    return epochs * -(-len(split) // BATCH)


def train(model: nn.Module, split: Split, epochs: int) -> Iterator[float]:
    """Trains step by step, yielding each step's log loss; leaves the model in eval mode at the end."""
    parts = (split[rows] for _ in range(epochs) for rows in torch.randperm(len(split)).split(BATCH))
    return fit(model, (((part.ids, part.genres), part.labels) for part in parts), model, steps(split, epochs))


def fit(
    model: nn.Module,
    batches: Iterable[tuple[tuple[Tensor, ...], Any]],
    call: Callable[..., Tensor],
    total: int,
    objective: Callable[[Tensor, Any], Tensor] = binary_cross_entropy_with_logits,
) -> Iterator[float]:
    """One step for each batch of (inputs, labels) through `call`, the model as it is or compiled; Adam, at most `total`
    steps of one cycle. Yields losses by `objective`, log losses by default; leaves the model in eval mode at the end,
    or when it is broken off.
    """
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    dense = [p for p in model.parameters() if all(p is not table for table in tables)]
    optimizer = torch.optim.Adam([{"params": dense}, {"params": tables}])
    schedule = one_cycle(optimizer, total)
    model.train()
    try:
        for inputs, labels in batches:
            loss = objective(call(*inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            yield loss.item()
    finally:  # also where nobody asks for the losses that are left
        model.eval()


def one_cycle(optimizer: torch.optim.Optimizer, total: int) -> torch.optim.lr_scheduler.OneCycleLR:
    """The rates of so many steps: they rise in the first tenth, and fall in the rest.

    torch divides by the steps of the rise less one. Of 10 steps that is 0, so these begin at the top, as 9 do. A single
    step would be the last of the fall, whose rate is next to nothing: it takes the first rate of two steps.
    """
    rise = WARM_UP if WARM_UP * total != 1 else 0.9 * WARM_UP
    rates = [RATE, TABLE_RATE]
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rates, total_steps=max(total, 2), pct_start=rise)


@contextmanager
def evaluating(call: object) -> Iterator[None]:
    """Puts a model into eval mode, and every part of it back into the mode it was in. What is no module is left alone:
    whoever gives a function sees to its mode."""
    modules = [*call.modules()] if isinstance(call, nn.Module) else []
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def predict(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The logits of all batches, one after another, in eval mode."""
    with evaluating(model):
        return torch.cat([model(*batch).float() for batch in batches])


def main() -> None:
    """Trains on the first 90 % of the training ratings and prints how well the rest is predicted."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--epochs", type=int, default=1)
    epochs = parser.parse_args().epochs

    torch.manual_seed(0)
    data = load()
    cut = len(data.train) * 9 // 10
    early, late = data.train[:cut], data.train[cut:].hide_unseen(data.train[:cut])
    model = wukong(data)
    for step, loss in enumerate(train(model, early, epochs), start=1):
        if step % 10 == 0:
            print(f"step {step:4d} of {steps(early, epochs)}: log loss {loss:.4f}")
    logits = predict(model, late.batches(4096))[: len(late)]
    print(", ".join(f"{name} {value:.4f}" for name, value in quality(logits, late.labels).items()))


if __name__ == "__main__":
    main()
