"""Partition, filter, sketch, teach, train, serve, report: one stage after another, each kept when it is done."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from examples.lattice.kept import Kept
from examples.lattice.networks import samples
from examples.lattice.networks.samples import Samples
from examples.lattice.networks.size import Size
from examples.lattice.pipeline import arms, report, stages, timing
from examples.lattice.pipeline.arms import BACKENDS, CONSOLIDATED, LONGER, MERGED, SEPARATE, UNTIED
from examples.lattice.sketch.search import Bounds

ARMS = (SEPARATE, LONGER, MERGED, UNTIED, CONSOLIDATED)
STAGES = ("partition", "filter", "sketch", "teacher", *ARMS)
RATINGS = 4000  # of a rehearsal


def main(options: argparse.Namespace) -> dict[str, Any]:
    """Runs what is not yet in `options.out`, prints and writes the report, returns what it shows."""
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    names = ("data", "seed", "features", "trials", "quality", "latency", "backend", "quick")
    kept = Kept(folder / "run.json", {name: getattr(options, name) for name in names})
    timed = tuple(dict.fromkeys(options.time or ("eager", options.backend)))
    times = f"timing, {' '.join(timed)}"
    with Progress(console=Console(stderr=True)) as progress:
        whole = progress.add_task(options.data, total=len(STAGES) + 1)

        def once(name: str, make: Callable[[], Any]) -> Any:
            """A stage's result, made if it is not kept."""
            progress.update(whole, description=f"{options.data}: {name}")
            if name not in kept.more:
                kept.more[name] = make()
                kept.write()
            progress.advance(whole)
            return kept.more[name]

        def watch(losses: Iterator[float], total: int, name: str) -> Iterator[float]:
            bar = progress.add_task(f"  {name}", total=total)
            for loss in losses:
                progress.advance(bar)
                yield loss
            progress.remove_task(bar)

        run(options, once, watch, folder, (times, timed))
    found = {**kept.more, "problem": options.data, "backend": options.backend}
    found["arms"] = {arm: kept.more[arm] for arm in ARMS}
    found["timing"] = kept.more[times]
    report.show(found, Console(width=None if sys.stdout.isatty() else 150))
    (folder / "report.md").write_text(report.markdown(found), encoding="utf-8")
    report.plot(found, folder / "report.png")
    return found


def run(
    options: argparse.Namespace,
    once: Callable[[str, Callable[[], Any]], Any],
    watch: stages.Watch,
    folder: Path,
    timed: tuple[str, tuple[str, ...]],
) -> None:
    """All stages. timed: the last one's name, and the backends that take turns in it."""
    parts = once("partition", lambda: stages.grouped(stages.load(options.data, options.quick), options.seed))
    every = loaded(options)
    kept = once("filter", lambda: stages.filtered(every, options.features, options.seed, watch))["kept"]
    chosen = every.with_fields(tuple(kept), bag="bag" in kept)
    untied = parts["untied"][0]
    storage, bounds = folder / "sketch.db", Bounds(options.quality, options.latency)
    sizes = once(
        "sketch", lambda: stages.sketched(chosen, untied, options.trials, bounds, storage, options.seed, watch)
    )
    size = size_from(sizes["size"])
    count = RATINGS if options.quick else None
    teacher = once("teacher", lambda: stages.taught(every, folder / "knowledge.safetensors", options.seed, count))
    knowledge = stages.knowledge_of(folder / teacher["file"]) if teacher["file"] else None
    backend = BACKENDS[options.backend]
    made = {arm: arms.jobs(arm, chosen, size, parts, knowledge) for arm in ARMS}
    for arm in ARMS:
        weights = folder if arm == CONSOLIDATED else None
        once(arm, lambda arm=arm, weights=weights: arms.arm(made[arm], backend, options.seed, weights, watch))
    batch, rounds = (64, 2) if options.quick else (512, 15)
    models = {SEPARATE: made[SEPARATE], CONSOLIDATED: made[CONSOLIDATED]}
    once(timed[0], lambda: timing.timing(models, timed[1], batch, rounds))


def loaded(options: argparse.Namespace) -> Samples:
    found = samples.load(options.data, options.seed)
    if not options.quick:
        return found
    return found.last(RATINGS)


def size_from(body: dict[str, Any]) -> Size:
    """As JSON has kept it: lists are tuples."""
    known = {each.name for each in fields(Size)}
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in body.items() if name in known}
    return Size(**values)
