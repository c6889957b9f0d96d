"""Training steps of eight models on this CPU: eager, Inductor and loka in turns.

    python examples/bench_training_cpu.py [--models Wukong BST] [--batch 512] [--rounds 15] [--exact] [--json FILE]

A step drops the last gradients, then is the model's forward, a mean cross-entropy, and the backward; no optimizer,
which is the same for all. Every variant trains a copy of the same model from one seed. Times are medians of rounds in
turns, measured here; `--cpu-time` counts the seconds of this process instead, for a machine that others use too.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a plain script

import loka_compile as loka
from examples.apart import APART
from examples.metrics import Race
from examples.models.samples import MODELS

LEAST, ASKED = 0.98, 1.1
"""Of the better of eager and Inductor, each model; over Inductor, in geometric mean."""
WARM_UP = 6
"""Steps before the clock: a plan is made after three."""

VARIANTS = ("eager", "Inductor", "loka")


def main(argv: list[str] | None = None) -> dict[str, object]:
    options = parse(argv)
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table(title=f"a training step of {options.batch} rows, {torch.get_num_threads()} thread(s), measured here")
    for column in ("model", *(f"{name} ms" for name in VARIANTS), "over Inductor", "over the better", "loka runs"):
        table.add_column(column, justify="left" if column in ("model", "loka runs") else "right")
    results: dict[str, dict[str, object]] = {}
    for name in options.models:
        results[name] = row = measured(name, options)
        ms, gain = [f"{row[each]:.2f}" for each in VARIANTS], f"{row['over_inductor']:.2f}x"
        table.add_row(name, *ms, gain, f"{row['over_the_better']:.2f}x", str(row["runs"]))
        console.print(f"{name}: {', '.join(f'{each} {m} ms' for each, m in zip(VARIANTS, ms, strict=True))}, {gain}")
    mean = math.exp(sum(math.log(float(row["over_inductor"])) for row in results.values()) / len(results))
    least = min(float(row["over_the_better"]) for row in results.values())
    console.print(table)
    console.print(
        f"over Inductor in geometric mean {mean:.2f}x (at least {ASKED}x asked for), "
        f"least over the better of eager and Inductor {least:.2f}x ({LEAST}x)"
    )
    figures: dict[str, object] = {"batch": options.batch, "models": results, "mean": mean, "least": least}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    return figures


def measured(name: str, options: argparse.Namespace) -> dict[str, object]:
    """Median milliseconds of a step of each variant, how they compare, and what loka chose."""
    torch.manual_seed(0)
    make, draw = MODELS[name]
    model, inputs = make().train(), draw(options.batch)
    models = {variant: copy.deepcopy(model) for variant in VARIANTS}
    chosen = {"recipes": (), "measure_calls": 0} if options.exact else None
    calls: dict[str, Callable[..., Tensor]] = {
        "eager": models["eager"],
        "Inductor": torch.compile(models["Inductor"], **APART),
        "loka": torch.compile(models["loka"], backend="loka", **APART, options=chosen),
    }
    labels = torch.rand_like(models["eager"](*inputs).detach()).round()

    def step(variant: str) -> None:
        models[variant].zero_grad()
        binary_cross_entropy_with_logits(calls[variant](*inputs), labels).backward()

    clock = time.process_time if options.cpu_time else time.perf_counter
    race = Race({variant: functools.partial(step, variant) for variant in VARIANTS}, clock)
    for _ in race.rounds(options.rounds, warm_up=WARM_UP):
        pass
    ms = {variant: race.ms(variant) for variant in VARIANTS}
    plan = loka.plan(calls["loka"])
    runs = f"{len(plan.lowered)} of {len(plan.decisions)} products lowered"
    if "as in eager" in plan.raced:
        runs = "as in eager"
    better = min(ms["eager"], ms["Inductor"])
    torch.compiler.reset()
    return {**ms, "over_inductor": ms["Inductor"] / ms["loka"], "over_the_better": better / ms["loka"], "runs": runs}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    parser.add_argument("--exact", action="store_true", help="loka without low precision: every product in float32")
    parser.add_argument("--cpu-time", action="store_true", help="count this process' CPU seconds, not the clock's")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    return options


if __name__ == "__main__":
    main()
