"""Filter against the weighted sum, single tasks and chance, at equal budgets: how good is the worst task?

    python -m examples.lattice.filter.bench [--problems clothing bio] [--seeds 5] [--json FILE] [--plot FILE]
    python -m examples.lattice.filter.bench --time     # 12,000 features by 20 tasks

A model is trained on all features; their importances are measured on rows it has not seen; each way to choose keeps as
many features as the budget says; the same model is trained on those alone and judged on the test rows. Clothing: the
commonest words of a review are features, three objectives are tasks. Bio: 74 numbers, three families of proteins.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from examples.lattice import data
from examples.lattice.data import Data, Rows
from examples.lattice.filter import choose
from examples.lattice.filter.fronts import fronts
from examples.lattice.filter.importance import Importances, columns_of, permutation_importances
from examples.lattice.kept import Kept, bench_parser
from examples.metrics import auc

WORDS, QUICK_WORDS, HIDDEN, BATCH, RATE = 600, 120, 32, 256, 2e-3
BUDGETS = {"clothing": (10, 30, 100), "bio": (5, 10, 20)}
EPOCHS = {"clothing": 3, "bio": 2}


@dataclass(frozen=True, eq=False)
class Problem:
    """Dense features and labels by task (nan: none) of rows to learn from, to measure importances on, to be judged
    by. within: the domains of the rows for importances, among which a feature's values are dealt."""

    name: str
    names: tuple[str, ...]
    tasks: tuple[str, ...]
    train: tuple[Tensor, Tensor]
    held: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    within: Tensor


def clothing(seed: int, quick: bool) -> Problem:
    found = data.clothing(seed)
    counts = torch.bincount(found.train.bag.flatten(), minlength=found.bag)
    counts[data.UNKNOWN] = 0
    words = counts.topk(QUICK_WORDS if quick else WORDS).indices

    def dense(rows: Rows) -> tuple[Tensor, Tensor]:
        there = torch.zeros(len(rows), found.bag).scatter_(1, rows.bag, 1.0)
        return there[:, words], rows.labels

    return _problem(found, tuple(f"word {word}" for word in words.tolist()), found.tasks, dense, quick)


def bio(seed: int, quick: bool) -> Problem:
    found = data.bio()

    def dense(rows: Rows) -> tuple[Tensor, Tensor]:
        own = torch.nn.functional.one_hot(rows.domain, len(found.domains)).bool()
        return rows.dense, rows.labels.expand(-1, len(found.domains)).masked_fill(~own, torch.nan)

    return _problem(found, found.numbers, found.domains, dense, quick)


def _problem(
    found: Data,
    names: tuple[str, ...],
    tasks: tuple[str, ...],
    dense: Callable[[Rows], tuple[Tensor, Tensor]],
    quick: bool,
) -> Problem:
    """The rows of a quarter of the users (reviews, blocks of proteins) are held out for importances: of a user that was
    learned from more is known than of those that are tested."""
    train = found.train[torch.arange(0, len(found.train), 8)] if quick else found.train
    held = train.users % 4 == 3
    parts = (dense(rows) for rows in (train[~held], train[held], found.test))
    return Problem(found.name, names, tasks, *parts, train.domain[held])


def fit(problem: Problem, columns: Tensor, seed: int, epochs: int) -> nn.Module:
    """A small MLP on these columns."""
    torch.manual_seed(seed)
    inputs, labels = problem.train[0][:, columns], problem.train[1]
    model = nn.Sequential(nn.Linear(len(columns), HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, labels.shape[1]))
    optimizer = torch.optim.Adam(model.parameters(), RATE, fused=True)
    known = ~labels.isnan()
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(BATCH):
            loss = binary_cross_entropy_with_logits(model(inputs[rows]), labels[rows].nan_to_num(), reduction="none")
            optimizer.zero_grad()
            loss[known[rows]].mean().backward()
            optimizer.step()
    return model


@torch.no_grad()
def judge(problem: Problem, model: nn.Module, columns: Tensor) -> list[float]:
    """AUC by task on the test rows."""
    logits, labels = model(problem.test[0][:, columns]), problem.test[1]
    known = ~labels.isnan()
    return [auc(logits[own, task], labels[own, task]) for task, own in enumerate(known.T)]


def ways(found: Importances, budget: int, seed: int, tasks: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The features that each way keeps."""
    scores, rng = found.mean.numpy(), np.random.default_rng(seed)
    sigma = found.sigma.median(dim=0).values.numpy()
    return {
        "Pareto fronts": choose.pareto(scores, budget, rng),
        "Pareto fronts, sigma": choose.pareto(scores, budget, rng, sigma),
        "weighted sum": choose.weighted_sum(scores, budget),
        "weighted sum, each task's scaled to 1": choose.weighted_sum(scores, budget, choose.scales(scores)),
        **{f"{task} alone": choose.single_task(scores, budget, place) for place, task in enumerate(tasks)},
        "random": choose.at_random(scores, budget, rng),
    }


def settings(quick: bool) -> dict[str, object]:
    """All that decides the figures: those of anything else are not these."""
    few = QUICK_WORDS if quick else WORDS
    model = {"hidden": HIDDEN, "batch": BATCH, "rate": RATE, "epochs": EPOCHS}
    return {"budgets": BUDGETS, "words": few, **model, "quick": quick}


def main(argv: list[str] | None = None) -> dict[str, object]:
    options = parse(argv)
    if options.time:
        return timed()
    kept = Kept(options.json, settings(options.quick))
    for name in options.problems:
        for seed in kept.left(name, options.seeds):
            problem = {"clothing": clothing, "bio": bio}[name](seed, options.quick)
            every, epochs = torch.arange(len(problem.names)), EPOCHS[name]
            model = fit(problem, every, seed, epochs)
            run = {"all features": judge(problem, model, every)}
            importances = permutation_importances(
                model,
                problem.held[:1],
                problem.held[1],
                columns_of(problem.names, 0),
                seed=seed,
                within=problem.within,
            )
            for budget in BUDGETS[name]:
                for way, chosen in ways(importances, budget, seed, problem.tasks).items():
                    columns = torch.from_numpy(np.sort(chosen))
                    run[f"{budget}: {way}"] = judge(problem, fit(problem, columns, seed, epochs), columns)
            kept.more[name] = {"tasks": problem.tasks, "features": len(problem.names)}
            kept.add(name, seed, run)
        Console(width=140).print(table(name, kept.more[name], kept.runs(name, options.seeds)))
    if options.plot:
        plot(kept, options)
    return kept.more


def timed() -> dict[str, object]:
    """Seconds of sorting 12,000 features by 20 tasks, once where they agree and once where they do not."""
    rng, seconds = np.random.default_rng(0), {}
    for name, shared in (("independent tasks", 0.0), ("tasks that agree", 3.0)):
        scores = shared * rng.normal(size=(12_000, 1)) + rng.normal(size=(12_000, 20))
        for library in ("numpy", "moocore") if importlib.util.find_spec("moocore") else ("numpy",):
            start = time.perf_counter(), time.process_time()
            count = int(fronts(scores, library=library).max()) + 1
            took = {"wall": time.perf_counter() - start[0], "cpu": time.process_time() - start[1], "fronts": count}
            seconds[f"{name}, {library}"] = took
            print(f"12,000 x 20, {name}, {library}: {took}")
    return seconds


def lost(runs: list[list[float]], every: list[list[float]]) -> list[float]:
    """By seed, how much AUC the task that lost most has lost against all features."""
    return [max(b - a for a, b in zip(run, best, strict=True)) for run, best in zip(runs, every, strict=True)]


def table(name: str, of: dict[str, Any], found: dict[str, list[list[float]]]) -> Table:
    seeds = len(found["all features"])
    shown = Table(title=f"{name}: AUC with the features kept of {of['features']}, {seeds} seeds")
    shown.add_column("budget: way")
    for column in (*of["tasks"], "worst task's loss against all features"):
        shown.add_column(column, justify="right")
    for way, runs in found.items():
        worst = lost(runs, found["all features"])
        shown.add_row(
            way,
            *(f"{fmean(of):.4f} ± {pstdev(of):.4f}" for of in zip(*runs, strict=True)),
            f"{fmean(worst):.4f} ± {pstdev(worst):.4f}",
        )
    return shown


def plot(kept: Kept, options: argparse.Namespace) -> None:
    """The worst task's loss against the budget, one line a way."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(options.problems), figsize=(6 * len(options.problems), 4), squeeze=False)
    for panel, name in zip(panels[0], options.problems, strict=True):
        found = kept.runs(name, options.seeds)
        lines: dict[str, list[tuple[int, float]]] = {}
        for key, runs in found.items():
            if key != "all features":
                budget, way = key.split(": ", 1)
                lines.setdefault(way, []).append((int(budget), fmean(lost(runs, found["all features"]))))
        for way, points in lines.items():
            panel.plot(*zip(*points, strict=True), marker="o", label=way)
        panel.set(title=name, xlabel="features kept", ylabel="AUC lost by the worst task", xscale="log")
        panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(options.plot, dpi=120)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = bench_parser(__doc__, "few rows and features")
    parser.add_argument("--problems", nargs="+", choices=("clothing", "bio"), default=["clothing", "bio"])
    parser.add_argument("--time", action="store_true", help="time the sorting alone")
    parser.add_argument("--plot", type=Path, help="where to draw them")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
