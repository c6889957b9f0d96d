"""Uniform recipes against Dispatch: the LoKA paper's own experiment, on this CPU.

    python examples/bench_dispatch.py [--models wukong ...] [--engines onnx_runtime ...] [--batch 4096] [--rounds 21]
                                      [--threads 1] [--no-uniform] [--all] [--cpu-time] [--json FILE]

Each model trains a few steps on MovieLens, so that its distributions are real, and is probed once. Then it is compiled
with Inductor in float32, with every *uniform* recipe (one recipe wherever a kernel can run it, budgets or not), and
with what Dispatch decides. Other engines (examples/engines: torchao, PyTorch's own dynamic quantization, ONNX Runtime,
OpenVINO) run the same model, and one that cannot says why. All take turns on the same batch of ratings the model has
not seen, with as many threads. Every time printed is measured here.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a plain script

import loka_compile as loka
from examples import engines, movielens, training
from examples.apart import APART
from examples.metrics import Race, fastest
from examples.models.dcnv2 import DCNv2
from examples.models.dlrm import DLRM
from examples.models.mmoe import MMoE
from examples.models.wukong import Wukong
from examples.quickstart import CALIBRATION_BATCHES, bars
from examples.quickstart import TINY as TINY_WUKONG
from examples.variants import BUDGET, Variant, count_sites, criteria, relative_rms, table, verdict

MODELS = {"wukong": Wukong, "dlrm": DLRM, "dcnv2": DCNv2, "mmoe": MMoE}
TINY = {
    "wukong": TINY_WUKONG,
    "dlrm": dict(width=16, bottom=(64,), top=(64,)),
    "dcnv2": dict(width=16, layers=1, deep=(64,)),
    "mmoe": dict(width=16, experts=2, expert=(64,), tower=()),
}
TRAINING_ROWS = 32_768
# As Options allow it, "whatever it costs": a speed-up of exactly 0 would let emulation compete too.
ANY_COST = dict(max_mere=math.inf, min_sqnr_db=0, min_speedup=1e-9)
HOPELESS = 5.0  # a variant this many times slower than Inductor before the race does not run in it


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Runs the experiment for every model and returns what `--json` writes."""
    options = parse(argv)
    console = Console(width=None if sys.stdout.isatty() else 160)
    data = movielens.load()
    results: dict[str, object] = {
        "batch": options.batch,
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "times": "measured on this CPU",
        "engines": {engine: engines.versions(engine) for engine in options.engines},
        "held_to": os.environ.get("ONEDNN_MAX_CPU_ISA"),
        "clock": "CPU seconds" if options.cpu_time else "wall",
        "models": {},
    }
    for name in options.models:
        with bars(console) as progress, tempfile.TemporaryDirectory() as folder:
            variants = experiment(name, data, options, progress, Path(folder))
        results["models"][name] = {v: variant.to_json() for v, variant in variants.items()}
        console.print(table(name, variants, options))
        torch.compiler.reset()  # the next model starts with nothing compiled
    results["loka_over_inductor_geometric_mean"] = geometric_mean(
        variants["loka"]["over_inductor"] for variants in results["models"].values()
    )
    results["criteria"] = criteria(results)
    console.print(verdict(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def experiment(
    name: str, data: movielens.MovieLens, options: argparse.Namespace, progress: Progress, folder: Path
) -> dict[str, Variant]:
    """One model: train, probe, compile every variant, compare outputs, race."""
    # 1. A model with real distributions, and batches: one to calibrate and compile on, one it has not seen.
    torch.manual_seed(0)
    model = MODELS[name](data.cardinalities, data.genres, **(TINY[name] if options.quick else {}))
    train = data.train[-(1024 if options.quick else TRAINING_ROWS) :]
    steps = training.train(model, train, epochs=1)
    for _ in progress.track(steps, total=training.steps(train, 1), description=f"{name}: train"):
        pass
    calibration = train[-CALIBRATION_BATCHES * options.batch :].batches(options.batch)
    batch = data.test[: options.batch].batches(options.batch)[0]

    # 2. Probe once; all plans come from this profile.
    with torch.no_grad(), loka.probe(model) as probe:
        for seen in progress.track(calibration, description=f"{name}: probe"):
            model(*seen)
    variants = make_variants(model, probe.profile, options)
    variants |= engine_variants(model, calibration, options, folder)

    # 3. Compile on a calibration batch; then outputs and two timed calls, which spare the race what is hopeless.
    with torch.no_grad():
        reference = copy.deepcopy(model).double()(*batch)
        later_calls: dict[str, float] = {}
        for label, variant in progress.track(variants.items(), description=f"{name}: compile"):
            if variant.skipped:
                continue
            try:
                variant.call(*calibration[0])
                out = variant.call(*batch)
            except Exception as error:
                if variant.kind != "engine":
                    raise
                variant.skipped = f"cannot take the model: {engines.reason_of(error)}"
                continue
            later_calls[label] = fastest(functools.partial(variant.call, *batch))
            variant.error = relative_rms(out, reference)
            slower = later_calls[label] / later_calls["inductor"]
            if variant.kind in ("uniform", "engine") and slower > HOPELESS:
                variant.skipped = f"not raced, a call took {slower:.0f}x Inductor's"
    count_sites(variants["loka"], loka.plan(variants["loka"].call))

    # 4. Race those that are left, in turns.
    loka_again = replace(variants["loka"], kind="control")  # the same callable: what the race makes of no difference
    variants["loka, again"] = loka_again
    racing = {label: variant for label, variant in variants.items() if not variant.skipped}
    clock = time.process_time if options.cpu_time else time.perf_counter
    race = Race({label: functools.partial(variant.call, *batch) for label, variant in racing.items()}, clock)
    with torch.no_grad():
        for _ in progress.track(race.rounds(options.rounds), total=options.rounds, description=f"{name}: race"):
            pass
    for label, variant in racing.items():
        variant.ms = race.ms(label)
        variant.over_inductor = race.speedup(label, over="inductor")
        variant.loka_over_it = race.speedup("loka", over=label)
    return variants


def make_variants(model: nn.Module, profile: loka.Profile, options: argparse.Namespace) -> dict[str, Variant]:
    """What is compared, by name; nothing is compiled yet."""

    def compiled(what: nn.Module, **more: object) -> Callable[..., Tensor]:
        return torch.compile(what, **APART, **more)  # each its own: they share one model's code

    variants = {"inductor": Variant("baseline", compiled(model)), "eager": Variant("baseline", model)}
    for recipe in BUDGET.recipes if options.uniform else ():
        if recipe.startswith("fp8") and not options.all:
            variants[recipe] = Variant("uniform", model, skipped="not tried, FP8 is slow on CPUs: --all")
            continue
        plan = loka.dispatch(profile, options=loka.Options(recipes=(recipe,), **ANY_COST))
        variant = Variant("uniform", compiled(model, backend="loka", options={"plan": plan}))
        count_sites(variant, plan)
        if not plan.lowered:
            variant.skipped = "no kernel here runs it at any site"
        variants[recipe] = variant
    variants["loka"] = Variant("dispatch", compiled(model, backend="loka", options={"profile": profile}))
    return variants


def engine_variants(
    model: nn.Module, batches: Sequence[engines.Batch], options: argparse.Namespace, folder: Path
) -> dict[str, Variant]:
    """Other engines; each is made when it is first called, so that one that cannot says so in its row."""
    variants: dict[str, Variant] = {}
    for engine in options.engines:
        for label, make in engines.makers(engine, model, batches, options.threads, folder).items():
            reason = make if isinstance(make, str) else ""
            call = model if isinstance(make, str) else engines.Late(make)
            variants[label] = Variant("engine", call, skipped=reason, note=engines.not_held(engine))
    return variants


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--batch", type=int, help="ratings a batch (4096; 256 with --quick)")
    parser.add_argument("--rounds", type=int, help="rounds of the race (21; 3 with --quick)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of every variant")
    parser.add_argument("--engines", nargs="*", choices=list(engines.ENGINES), default=list(engines.ENGINES))
    parser.add_argument("--no-uniform", dest="uniform", action="store_false", help="without uniform recipes")
    parser.add_argument("--cpu-time", action="store_true", help="count this process' CPU seconds, not the clock's")
    parser.add_argument("--all", action="store_true", help="FP8 recipes too, which are slow on CPUs")
    parser.add_argument("--quick", action="store_true", help="tiny models on a few ratings: a rehearsal, no result")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    options = parser.parse_args(argv)
    options.batch = options.batch or (256 if options.quick else 4096)
    options.rounds = options.rounds or (3 if options.quick else 21)
    torch.set_num_threads(options.threads)
    return options


if __name__ == "__main__":
    main()
