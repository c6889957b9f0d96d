"""Partition, filter, sketch, teach, train, time, report: one stage after another, each kept when it is done."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from rich.console import Console
from rich.progress import Progress

from examples.lattice.kept import Kept
from examples.lattice.networks import samples
from examples.lattice.networks.samples import Samples
from examples.lattice.networks.size import Size
from examples.lattice.pipeline import arms, report, stages, timing
from examples.lattice.pipeline.arms import BACKENDS, CONSOLIDATED, SEPARATE
from examples.lattice.sketch.search import Bounds

RATINGS = 4000  # of a rehearsal
Found = dict[str, Any]


class Stages:
    """What each stage has found, and by which options. A stage is run again if its options changed, or if a file
    that it wrote is not there or is another's; others are not."""

    def __init__(self, kept: Kept, progress: Progress, title: str) -> None:
        self._kept, self._progress, self._title = kept, progress, title
        self._whole = progress.add_task(title)

    def once(self, name: str, make: Callable[[], Any], **options: Any) -> Any:
        """The stage's result, made if none is kept for these options."""
        self._progress.update(self._whole, description=f"{self._title}: {name}")
        options = json.loads(json.dumps(options))  # as they come back
        kept = self._kept.more.get(name)
        if kept is None or kept["options"] != options or not self._whole_files(kept["found"]):
            found = json.loads(json.dumps(make()))
            self._kept.more[name] = {"options": options, "found": found}
            self._kept.write()
        return self._kept.more[name]["found"]

    def _whole_files(self, found: dict[str, Any]) -> bool:
        """Whether the files that a stage wrote hold what it wrote: another run may have been stopped after its own."""
        path = self._kept.path
        return path is None or all(
            stages.digest(path.parent / name) == of for name, of in found.get("files", {}).items()
        )

    def watch(self, losses: Iterator[Any], total: int, name: str) -> Iterator[Any]:
        """A bar for a training, or for rounds."""
        bar = self._progress.add_task(f"  {name}", total=total)
        for each in losses:
            self._progress.advance(bar)
            yield each
        self._progress.remove_task(bar)


def main(options: argparse.Namespace) -> Found:
    """Runs what is not yet in `options.out`, prints and writes the report, returns what it shows."""
    folder: Path = options.out
    kept = Kept(folder / "run.json", {name: getattr(options, name) for name in ("data", "seed", "quick")})
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the bars say what goes on
    with Progress(console=Console(stderr=True)) as progress:
        found = run(options, Stages(kept, progress, options.data), folder)
    report.show(found, Console(width=None if sys.stdout.isatty() else 150))
    (folder / "report.md").write_text(report.markdown(found), encoding="utf-8")
    report.plot(found, folder / "report.png")
    return found


def run(options: argparse.Namespace, stage: Stages, folder: Path) -> Found:
    """All stages: what each has found, by its name, those of training under "arms"."""
    seed, backend = options.seed, BACKENDS[options.backend]
    found: Found = {"problem": options.data, "backend": options.backend, "quick": options.quick}
    parts = stage.once("partition", lambda: stages.grouped(stages.load(options.data, options.quick, seed), seed))
    every = loaded(options)
    asked: Found = {"features": options.features, "backend": options.backend}
    choose = partial(stages.filtered, every, options.features, seed, stage.watch, backend["serving"])
    kept = stage.once("filter", choose, **asked)
    chosen = every.with_fields(tuple(each for each in kept["kept"] if each != "bag"), bag="bag" in kept["kept"])
    asked |= {name: getattr(options, name) for name in ("trials", "quality", "latency")}
    size = stage.once("sketch", partial(sketched, options, chosen, parts, folder, stage), **asked)
    count = RATINGS if options.quick else None
    teacher = stage.once("teacher", partial(stages.taught, every, folder / "knowledge.safetensors", seed, count))
    knowledge = stages.knowledge_of(folder / teacher["file"]) if teacher["file"] else None
    found |= {"partition": parts, "filter": kept, "sketch": size, "teacher": teacher, "arms": {}}
    made = {}
    asked["steps of a group"] = "as many as one network for all takes"
    for arm in arms.arms_of(parts):
        made[arm] = arms.jobs(arm, chosen, Size(**arms.tuples(size["size"])), parts, knowledge)
        weights = folder if arm == CONSOLIDATED else None
        train = partial(arms.arm, made[arm], backend, seed, weights, stage.watch)
        found["arms"][arm] = stage.once(arm, train, **asked)
    timed = list(dict.fromkeys(options.time or ("eager", options.backend)))
    found["batch"], rounds = (64, 2) if options.quick else (512, 15)
    models = {arm: made[arm] for arm in (SEPARATE, CONSOLIDATED)}
    time = partial(timing.timing, models, timed, found["batch"], rounds, stage.watch)
    return {**found, "timing": stage.once("timing", time, **asked, backends=timed)}


def sketched(options: argparse.Namespace, chosen: Samples, parts: Found, folder: Path, stage: Stages) -> Found:
    bounds = Bounds(options.quality, options.latency)
    return stages.sketched(chosen, parts["untied"][0], options.trials, bounds, folder, options.seed, stage.watch)


def loaded(options: argparse.Namespace) -> Samples:
    found = samples.load(options.data, options.seed)
    if not options.quick:
        return found
    return found.last(RATINGS)
