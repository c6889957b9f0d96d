"""The partitioner's grouping against merging all, none, and at random, at equal FLOPs in all.

    python -m examples.lattice.partitioner.bench [--problems movielens clothing] [--seeds 5] [--json FILE]

Portfolios are (domain, task) pairs. All models of a partition share one budget of FLOPs: dealt by revenue (positives)
to the groups. A model of few rows takes few steps in as many epochs, so those of unmerged portfolios are also trained
for as many steps as a model of all rows takes. Feedback's delays are assumptions: at once, but a week for "helpful"
votes, which others cast later.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean, pstdev
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from examples.lattice import data
from examples.lattice.data import Data, Rows
from examples.lattice.kept import Kept, bench_parser
from examples.lattice.partitioner import describe, groups
from examples.lattice.partitioner.describe import Weights
from examples.lattice.partitioner.groups import Key
from examples.lattice.partitioner.partition import Group, Limits, capacity, partition

WEEK = 7 * 86_400.0
DELAYS = {"movielens": (0.0, 0.0), "clothing": (0.0, 0.0, WEEK)}
EPOCHS = {"movielens": 1, "clothing": 2}
FLOPS = 200_000.0  # a sample, all models together
LIMITS = Limits()
WEIGHTS = Weights()


def settings(quick: bool) -> dict[str, Any]:
    """What figures depend on beside the seed."""
    return {
        "flops": FLOPS,
        "limits": asdict(LIMITS),
        "weights": asdict(WEIGHTS),
        "delays": DELAYS,
        "epochs": EPOCHS,
        "width": groups.WIDTH,
        "batch": groups.BATCH,
        "rate": groups.RATE,
        "newton": groups.NEWTON,
        "trainings": groups.TRAININGS,
        "moments": groups.MOMENTS,
        "folds": groups.FOLDS,
        "rows": groups.ROWS,
        "what a model has not learned": "unknown",
        "sure": describe.SURE,
        "hashes": describe.LG_K,
        "words": data.WORDS,
        "seldom": data.SELDOM,
        "quick": quick,
    }


def load(name: str, quick: bool) -> Data:
    found = {"movielens": data.movielens, "clothing": data.clothing}[name]()
    return small(found) if quick else found


def small(found: Data) -> Data:
    """A tenth of the rows, for a rehearsal."""

    def few(rows: Rows) -> Rows:
        return rows[torch.arange(0, len(rows), 10)]

    return Data(**{**found.__dict__, "train": few(found.train), "test": few(found.test)})


def dealt(keys: Sequence[Key], count: int, seed: int) -> list[Group]:
    """Portfolios dealt to `count` groups, none of them empty."""
    order = list(range(len(keys)))
    random.Random(seed).shuffle(order)
    return [tuple(sorted(order[start::count])) for start in range(count)]


def by_domain(scores: dict[Key, float]) -> dict[int, float]:
    """Mean AUC over a domain's tasks."""
    return {d: fmean(v for key, v in scores.items() if key.domain == d) for d in sorted({key.domain for key in scores})}


def main(argv: list[str] | None = None) -> dict[str, object]:
    options = parse(argv)
    kept = Kept(options.json, settings(options.quick))
    for name in options.problems:
        found = load(name, options.quick)
        keys = [key for key in groups.keys_of(found) if _enough(found, key)]
        portfolios = groups.describe(found, keys, FLOPS / len(keys), DELAYS[name], 0)
        chosen = partition(portfolios, LIMITS, WEIGHTS)
        console = Console(width=140, soft_wrap=True)
        console.print(chosen.explain(), highlight=False)
        for seed in kept.left(name, options.seeds):
            run: dict[str, dict[str, float]] = {}
            ways: dict[str, list[Group]] = {
                "partitioner": list(chosen.groups),
                "all in one": [tuple(range(len(keys)))],
                "none merged": [(i,) for i in range(len(keys))],
                "random, as many groups": dealt(keys, len(chosen.groups), seed),
            }
            longer = "none merged, as many steps"
            ways[longer] = ways["none merged"]
            for way, grouped in ways.items():
                budgets = capacity(portfolios, grouped, FLOPS)
                scores = groups.evaluate(found, keys, grouped, budgets, seed, EPOCHS[name], way == longer)
                run[way] = {found.domains[domain]: mean for domain, mean in by_domain(scores).items()}
            kept.more[name] = {
                "groups": [[portfolios[i].name for i in group] for group in chosen.groups],
                "explain": chosen.explain().splitlines(),
            }
            kept.add(name, seed, run)
        console.print(table(found.name, kept.runs(name, options.seeds), len(chosen.groups)))
    return kept.more


def _enough(found: Data, key: Key) -> bool:
    """A portfolio is judged only if its domain has 50 test rows or more, with labels of both kinds."""
    labels = found.test.labels[found.test.domain == key.domain, key.task]
    labels = labels[~labels.isnan()]
    return len(labels) >= 50 and 0 < float(labels.mean()) < 1


def table(name: str, runs: dict[str, list[dict[str, float]]], count: int) -> Table:
    domains = list(next(iter(runs.values()))[0])
    shown = Table(title=f"{name}: AUC by domain, {len(next(iter(runs.values())))} seeds, {count} groups")
    shown.add_column("way")
    for column in (*domains, "average", "worst"):
        shown.add_column(column, justify="right")
    for way, seeds in runs.items():
        each = [[run[d] for run in seeds] for d in domains]
        average, worst = [fmean(run.values()) for run in seeds], [min(run.values()) for run in seeds]
        shown.add_row(way, *(f"{fmean(of):.4f} ± {pstdev(of):.4f}" for of in (*each, average, worst)))
    return shown


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = bench_parser(__doc__)
    parser.add_argument("--problems", nargs="+", choices=tuple(DELAYS), default=list(DELAYS))
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
