"""Uniform recipes against Dispatch: the LoKA paper's own experiment, on this CPU.

    python examples/bench_dispatch.py [--models wukong ...] [--batch 4096] [--rounds 21] [--all] [--json FILE]

Each model trains a few steps on MovieLens, so that its distributions are real, and is probed once. Then it is compiled
with Inductor in float32, with every *uniform* recipe (one recipe wherever a kernel can run it, budgets or not), with
what Dispatch decides, and, where torchao is installed, with its int8 dynamic quantization under Inductor, as it comes
and with Inductor's freezing. All take turns on the same batch of ratings the model has not seen. Every time printed is
measured here.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from statistics import geometric_mean

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a plain script

import loka_compile as loka
from examples import movielens, training
from examples.apart import APART
from examples.metrics import Race
from examples.models.dcnv2 import DCNv2
from examples.models.dlrm import DLRM
from examples.models.mmoe import MMoE
from examples.models.wukong import Wukong
from examples.quickstart import CALIBRATION_BATCHES, bars
from examples.quickstart import TINY as TINY_WUKONG

MODELS = {"wukong": Wukong, "dlrm": DLRM, "dcnv2": DCNv2, "mmoe": MMoE}
TINY = {
    "wukong": TINY_WUKONG,
    "dlrm": dict(width=16, bottom=(64,), top=(64,)),
    "dcnv2": dict(width=16, layers=1, deep=(64,)),
    "mmoe": dict(width=16, experts=2, expert=(64,), tower=()),
}
TRAINING_ROWS = 32_768
BUDGET = loka.Options()  # loka's default budgets
# As Options allow it, "whatever it costs": a speed-up of exactly 0 would let emulation compete too.
ANY_COST = dict(max_mere=math.inf, min_sqnr_db=0, min_speedup=1e-9)
HOPELESS = 5.0  # a variant this many times slower than Inductor at its second call does not race
TIE = 0.98  # "at least as fast" is a median ratio of at least this; compare "loka, again", which is loka itself
MIN_SPEEDUP = 2.0  # what it must show: loka over Inductor, geometric mean of the models


@dataclass
class Variant:
    """One way to run a model, and what came of it.

    chosen: sites by what they run in. over_budget: sites whose recipe misses the site budgets. error: relative RMS of
    the outputs against eager float32. ratios are medians over the rounds. skipped: why it did not race.
    """

    kind: str
    call: Callable[..., Tensor] = field(repr=False)
    chosen: dict[str, int] = field(default_factory=dict)
    over_budget: int = 0
    error: float | None = None
    ms: float | None = None
    over_inductor: float | None = None
    loka_over_it: float | None = None
    skipped: str = ""

    @property
    def within_budget(self) -> bool:
        return self.error is not None and self.error <= BUDGET.max_output_error and not self.over_budget

    def to_json(self) -> dict[str, object]:
        body = {name: value for name, value in vars(self).items() if name != "call"}
        return body | {"within_budget": self.within_budget}


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
        "torchao": metadata.version("torchao") if importlib.util.find_spec("torchao") else None,
        "models": {},
    }
    for name in options.models:
        with bars(console) as progress:
            variants = experiment(name, data, options, progress)
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
    name: str, data: movielens.MovieLens, options: argparse.Namespace, progress: Progress
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

    # 3. Compile on a calibration batch; then outputs and one timed call, which spares the race what is hopeless.
    with torch.no_grad():
        reference = model(*batch)
        second_call: dict[str, float] = {}
        for label, variant in progress.track(variants.items(), description=f"{name}: compile"):
            if not variant.skipped:
                variant.call(*calibration[0])
                start = time.perf_counter()
                out = variant.call(*batch)
                second_call[label] = time.perf_counter() - start
                variant.error = relative_rms(out, reference)
                slower = second_call[label] / second_call["inductor"]
                if variant.kind == "uniform" and slower > HOPELESS:
                    variant.skipped = f"not raced, its second call took {slower:.0f}x Inductor's"
    count_sites(variants["loka"], loka.plan(variants["loka"].call))

    # 4. Race those that are left, in turns.
    loka_again = replace(variants["loka"], kind="control")  # the same callable: what the race makes of no difference
    variants["loka, again"] = loka_again
    racing = {label: variant for label, variant in variants.items() if not variant.skipped}
    race = Race({label: lambda call=variant.call: call(*batch) for label, variant in racing.items()})
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

    variants = {"inductor": Variant("baseline", compiled(model))}
    for recipe in BUDGET.recipes:
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
    if importlib.util.find_spec("torchao"):
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantized = copy.deepcopy(model)
        quantize_(quantized, Int8DynamicActivationInt8WeightConfig())
        variants["torchao int8"] = Variant("torchao", compiled(quantized))
        variants["torchao int8, freezing"] = Variant("torchao", compiled(quantized, options={"freezing": True}))
    return variants


def count_sites(variant: Variant, plan: loka.Plan) -> None:
    """What the sites run in, and how many of them miss the budgets a site has."""
    variant.chosen = dict(Counter(str(decision.chosen) for decision in plan.decisions.values()))
    scores = [decision.score for decision in plan.lowered]
    variant.over_budget = sum(s.mere > BUDGET.max_mere or s.sqnr_db < BUDGET.min_sqnr_db for s in scores)


def relative_rms(out: Tensor, reference: Tensor) -> float:
    difference = out.double() - reference.double()
    return float(difference.square().mean().sqrt() / reference.double().square().mean().sqrt())


def criteria(results: dict[str, object]) -> dict[str, bool | None]:
    """What it must show, by sentence; None where there was nothing to compare with."""
    models = results["models"].items()
    judged: dict[str, bool | None] = {
        f"geometric mean over Inductor at least {MIN_SPEEDUP:g}x": results["loka_over_inductor_geometric_mean"]
        >= MIN_SPEEDUP
    }
    for name, variants in models:
        raced = [v for v in variants.values() if v["ms"] is not None]
        rivals = [v for v in raced if v["kind"] == "uniform" and v["within_budget"]]
        judged[f"{name}: at least as fast as every uniform recipe within budget"] = (
            all(v["loka_over_it"] >= TIE for v in rivals) if rivals else None
        )
        ours, torchao = variants["loka"], [v for v in raced if v["kind"] == "torchao"]
        judged[f"{name}: at least as fast as torchao's int8 at equal or better error"] = (
            all(v["loka_over_it"] >= TIE and ours["error"] <= v["error"] for v in torchao) if torchao else None
        )
    return judged


def table(name: str, variants: dict[str, Variant], options: argparse.Namespace) -> Table:
    """All variants of one model."""
    title = f"{name}: batch {options.batch}, {options.rounds} rounds, {torch.get_num_threads()} threads"
    caption = (
        "ms: median of one call, measured on this CPU; ratios: medians of the rounds' ratios.\n"
        "error: relative RMS of the outputs against eager float32, on ratings the model has not seen.\n"
        f"within budget: that error at most {BUDGET.max_output_error:g}, and at every lowered site "
        f"MERE <= {BUDGET.max_mere:g}, SQNR >= {BUDGET.min_sqnr_db:g} dB"
    )
    result = Table(title=title, caption=caption, caption_justify="left")
    for column in ("variant", "sites", "error", "within budget", "ms", "over Inductor", "loka over it", "note"):
        result.add_column(column, justify="left" if column in ("variant", "within budget", "note") else "right")
    for label, v in variants.items():
        lowered = sum(n for chosen, n in v.chosen.items() if chosen != "keep")
        sites = f"{lowered} of {sum(v.chosen.values())}" if v.chosen else "–"
        error = "–" if v.error is None else f"{v.error:.2e}"
        within = "–" if v.error is None else "yes" if v.within_budget else f"NO ({v.over_budget} sites over)"
        figures = ["–"] * 3
        if v.ms is not None:
            figures = [f"{v.ms:.1f}", f"{v.over_inductor:.2f}x", f"{v.loka_over_it:.2f}x"]
        style = "bold" if label == "loka" else "dim" if v.skipped else None
        result.add_row(label, sites, error, within, *figures, v.skipped, style=style)
    return result


def verdict(results: dict[str, object]) -> Table:
    """The geometric mean, and the criteria with a mark each."""
    mean = results["loka_over_inductor_geometric_mean"]
    result = Table(
        title=f"loka over Inductor float32, measured here: {mean:.2f}x, geometric mean over {len(results['models'])}",
        caption=f'"at least as fast": a median ratio of at least {TIE:g}; "loka, again" shows what chance alone does',
    )
    result.add_column("what it must show")
    result.add_column("")
    marks = {True: "[green]✓ pass[/]", False: "[red]✗ FAIL[/]", None: "nothing to compare"}
    for sentence, passed in results["criteria"].items():
        result.add_row(sentence, marks[passed])
    return result


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--batch", type=int, help="ratings a batch (4096; 256 with --quick)")
    parser.add_argument("--rounds", type=int, help="rounds of the race (21; 3 with --quick)")
    parser.add_argument("--all", action="store_true", help="FP8 recipes too, which are slow on CPUs")
    parser.add_argument("--quick", action="store_true", help="tiny models on a few ratings: a rehearsal, no result")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    options = parser.parse_args(argv)
    options.batch = options.batch or (256 if options.quick else 4096)
    options.rounds = options.rounds or (3 if options.quick else 21)
    return options


if __name__ == "__main__":
    main()
