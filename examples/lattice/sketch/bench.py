"""Sketch on a Lattice Network for MovieLens: sizes and shardings in one loop, for GPUs that are not here.

    python -m examples.lattice.sketch.bench [--target h100] [--gpus 8] [--memory BYTES] [--trials 6] [--out FOLDER]

Layers' times are modelled (loka.preview, a training step of `--batch` rows a GPU in bf16), communication and memory
reckoned (layers.py), quality measured: AUC on the last tenth of the training ratings after one pass over `--rows` of
those before. Previews and trials are kept in the folder; a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from examples.lattice.files import write_json
from examples.lattice.networks import fit, samples
from examples.lattice.networks.loss import Objective
from examples.lattice.networks.model import LatticeNetwork
from examples.lattice.networks.samples import Samples
from examples.lattice.networks.size import Size
from examples.lattice.sketch.layers import Cluster, Part, kept, parts_of, previewed
from examples.lattice.sketch.search import Between, Bounds, Report, Values
from examples.lattice.sketch.together import Together, search_together

SPACE = {"width": (8, 16, 32), "layers": (1, 2), "tokens": (4, 8, 16), "hidden": Between(32, 256, log=True, whole=True)}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    options = parse(argv)
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the bar says what goes on
    options.out.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(gpus=options.gpus, memory=options.memory)
    found = samples.movielens()
    if options.quick:
        found = found.last(4000)
    cut = found.cut * 9 // 10
    early, held = found.train[max(0, cut - options.rows) : cut], found.train[cut:]
    found = found.unseen_hidden(held, early)
    console = Console(width=120)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("sketch", total=options.trials)

        def parts(values: Values) -> tuple[float, list[Part]]:
            model = network(found, values)
            progress.update(task, description=f"{options.target}: {dict(values)}")
            return fit.flops_of(model, found), layers(model, found, values, options)

        def quality(values: Values, report: Report) -> float:
            model = network(found, values)
            for _ in fit.train(model, model, found, early, Objective()):
                pass
            scores = fit.judge(found, held, fit.predict(model, found, held))
            progress.advance(task)
            return fmean(each["auc"] for each in scores.values())

        best = search_together(
            parts,
            quality,
            SPACE,
            Bounds(0.0, options.latency),
            cluster,
            trials=options.trials,
            storage=options.out / "sketch.db",
            said={
                **{name: getattr(options, name) for name in ("target", "batch", "rows", "quick")},
                "data": found.name,
                "samples": len(found.labels),
                "new in held rows": "unknown",
                "torch": torch.__version__,  # whose kernels are modelled
            },
        )
    for shown in tables(best):
        console.print(shown)
    results = {"cluster": asdict(cluster), "target": options.target, "times": "modelled", **asdict(best)}
    write_json(options.out / "sketch.json", results)
    return results


def network(found: Samples, values: Values) -> LatticeNetwork:
    torch.manual_seed(0)
    size = Size(
        width=int(values["width"]),
        layers=int(values["layers"]),
        tokens=int(values["tokens"]),
        hidden=(int(values["hidden"]),),
        heads=max(1, int(values["width"]) // 8),
    )
    return LatticeNetwork(found.schema, size)


def layers(model: LatticeNetwork, found: Samples, values: Values, options: argparse.Namespace) -> list[Part]:
    """The layers of a model with their modelled seconds."""
    inputs, _ = found.batch(torch.arange(options.batch) % len(found.labels))
    key = key_of(model, values, options)
    seconds = kept(options.out / "previews.json", key, lambda: previewed(model, tuple(inputs), options.target))
    fields = len(found.schema.sources[0])
    lookups = {"features.categorical": found.schema.tokens, "sequences": found.schema.events * fields}
    return parts_of(model, seconds, options.batch, lookups)


def key_of(model: LatticeNetwork, values: Values, options: argparse.Namespace) -> str:
    """All that a preview depends on: the values in any order, what the data ask for, and whose kernels are modelled."""
    shapes = {name: list(each.shape) for name, each in model.state_dict().items()}
    settings = [options.target, options.batch, dict(values), shapes, torch.__version__]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return f"{options.target}, batch {options.batch}, {json.dumps(dict(values), sort_keys=True)}, {digest}"


def tables(best: Together) -> list[Table]:
    """The size that was found, its layers' strategies, and the step against strategies that are the same everywhere."""
    of = best.found
    shown = Table(title=f"{of.values}: AUC {of.auc:.4f}, {of.cost.flops / 1e3:.0f} kFLOP a row, score {of.score:.4f}")
    shown.add_column("layer")
    shown.add_column("strategy")
    for name, strategy in zip(best.layers, best.sharding.strategies, strict=True):
        shown.add_row(name, strategy)
    steps = Table(title=f"a step, modelled; {of.trained} of {of.tried} sizes were trained")
    steps.add_column("strategies")
    steps.add_column("µs", justify="right")
    steps.add_row("as found", f"{1e6 * best.sharding.seconds:.1f}")
    for name, seconds in best.alike.items():
        steps.add_row(name, "does not fit" if seconds is None else f"{1e6 * seconds:.1f}")
    return [shown, steps]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="h100")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--memory", type=int, default=1_000_000, help="bytes of a GPU for weights, gradients and state")
    parser.add_argument("--latency", type=float, default=1.0, help="most seconds of a step")
    parser.add_argument("--batch", type=int, default=4096, help="rows a GPU")
    parser.add_argument("--rows", type=int, default=20_000, help="ratings that a trial is trained on")
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument(
        "--out", type=Path, default=Path("build/lattice-sketch"), help="where all that is found is kept"
    )
    parser.add_argument("--quick", action="store_true", help="few ratings: a rehearsal, no result")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
