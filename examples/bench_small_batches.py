"""Serving small batches on this CPU: eager, Inductor and loka in turns.

    python examples/bench_small_batches.py [--models Wukong DLRM] [--batches 1 4 16 64 256] [--json FILE]

Each batch size is a request of its own to a model that was compiled for it. Times are medians of rounds in turns, each
of so many calls that it lasts a millisecond or more, measured here; `--cpu-time` counts the seconds of this process
instead, for a machine that others use too.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a plain script

import loka_compile as loka
from examples.apart import APART
from examples.metrics import Race
from examples.models.samples import MODELS

LEAST = 0.98
"""Of the better of eager and Inductor, each model at each batch."""
VARIANTS = ("eager", "Inductor", "loka")
WARM_UP = 6
"""Calls before the clock: a plan is made after three."""
LASTS = 2e-3
"""Seconds of one round, at least."""


def main(argv: list[str] | None = None) -> dict[str, object]:
    options = parse(argv)
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table(title=f"one call, {torch.get_num_threads()} thread(s), measured here")
    for column in ("model", "batch", *(f"{name} ms" for name in VARIANTS), "over Inductor", "over the better", "runs"):
        table.add_column(column, justify="left" if column in ("model", "runs") else "right")
    rows: list[dict[str, object]] = []
    for name in options.models:
        for batch in options.batches:
            rows.append(row := measured(name, batch, options))
            ms = [f"{row[each]:.3f}" for each in VARIANTS]
            better = f"{row['over_the_better']:.2f}x"
            table.add_row(name, str(batch), *ms, f"{row['over_inductor']:.2f}x", better, str(row["runs"]))
            console.print(f"{name} at {batch}: {', '.join(ms)} ms, {better} the better of eager and Inductor")
    least = min(float(row["over_the_better"]) for row in rows)
    console.print(table)
    console.print(f"least over the better of eager and Inductor {least:.2f}x ({LEAST}x asked for)")
    figures: dict[str, object] = {"rows": rows, "least": least}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    return figures


def measured(name: str, batch: int, options: argparse.Namespace) -> dict[str, object]:
    """Median milliseconds of a call of each variant, how they compare, and what loka chose."""
    torch.manual_seed(0)
    make, draw = MODELS[name]
    model, inputs = make().eval(), draw(batch)
    calls: dict[str, Callable[..., Tensor]] = {
        "eager": model,
        "Inductor": torch.compile(model, **APART, dynamic=False),
        "loka": torch.compile(model, backend="loka", **APART, dynamic=False),
    }
    clock = time.process_time if options.cpu_time else time.perf_counter
    with torch.inference_mode(options.inference_mode), torch.no_grad():
        for call in calls.values():
            for _ in range(WARM_UP):
                call(*inputs)
        start = time.perf_counter()
        calls["eager"](*inputs)
        repeats = max(1, round(LASTS / (time.perf_counter() - start)))

        def repeated(call: Callable[..., Tensor]) -> None:
            for _ in range(repeats):
                call(*inputs)

        race = Race({variant: functools.partial(repeated, call) for variant, call in calls.items()}, clock)
        for _ in race.rounds(options.rounds, warm_up=0):
            pass
    ms = {variant: race.ms(variant) / repeats for variant in VARIANTS}
    plan = loka.plan(calls["loka"])
    runs = "as in eager" if "as in eager" in plan.raced else f"{len(plan.lowered)} of {len(plan.decisions)} lowered"
    better = min(ms["eager"], ms["Inductor"]) / ms["loka"]
    torch.compiler.reset()
    over = {"over_inductor": ms["Inductor"] / ms["loka"], "over_the_better": better}
    return {"model": name, "batch": batch, **ms, **over, "runs": runs}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16, 64, 256])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    parser.add_argument("--inference-mode", action="store_true", help="serve under torch.inference_mode")
    parser.add_argument("--cpu-time", action="store_true", help="count this process' CPU seconds, not the clock's")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    return options


if __name__ == "__main__":
    main()
