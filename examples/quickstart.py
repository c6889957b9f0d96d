"""loka in one page: train a recommendation model on real data, then let loka make it fast without hurting it.

    make demo                          # or: python examples/quickstart.py

Trains Wukong on MovieLens-100k, measures where low precision is safe (probe), compiles with the decisions
that follow, and compares eager, Inductor and loka on ratings the model has not seen. Then it asks the same for
an H100 that is not here: its numerics are emulated, its times modelled, and the output says so wherever it matters.
Everything a person may want to read afterwards lands in build/quickstart/.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it also runs as a plain script

import loka_compile as loka
from examples import movielens, reports, training
from examples.metrics import Race, quality

CALIBRATION_BATCHES = 4
SEGMENTS, SEGMENT_ROWS = ("age", "gender", "occupation"), 32
# What the demo must show: limits on |change of AUC|, on relative change of log loss, and on speed-up: MIN_SPEEDUP where
# this CPU's kernels in 8 or 16 bits make the GEMMs at least FAST times as fast, elsewhere only that loka costs nothing.
MAX_AUC_CHANGE, MAX_LOGLOSS_CHANGE = 0.0005, 0.0002
MIN_SPEEDUP, NEVER_SLOWER, FAST = 1.5, 0.98, 2.0
RACE_SECONDS, MIN_ROUNDS = 20.0, 5
TINY = dict(width=16, tokens=4, k=4, hidden=(64, 64), head=(64,))


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Runs the whole story and returns what is also written to results.json."""
    options = parse(argv)
    console = Console(width=None if sys.stdout.isatty() else 160)
    with bars(console) as progress:
        return story(options, console, progress)


def story(options: argparse.Namespace, console: Console, progress: Progress) -> dict[str, object]:
    """How one uses loka, top to bottom."""
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    # 1. Real data, and a model trained on it. Nothing here knows of loka.
    data = movielens.load()
    train, test = (data.train[-4096:], data.test[:1024]) if options.quick else (data.train, data.test)
    model = training.wukong(data, **(TINY if options.quick else {}))
    started = time.perf_counter()
    for _ in progress.track(
        training.train(model, train, options.epochs),
        total=training.steps(train, options.epochs),
        description="train Wukong",
    ):
        pass
    train_seconds = time.perf_counter() - started

    # 2. Probe: run some ratings op by op and learn what each GEMM sees. They are chosen so that no age, gender or
    #    occupation is too rare to be judged by itself. The profile is a file.
    rows = min(len(train), CALIBRATION_BATCHES * options.batch)
    chosen = loka.stratified_sample(segments_of(train.ids), rows, segments=SEGMENTS, min_per_segment=SEGMENT_ROWS).rows
    calibration = train[chosen].batches(options.batch)
    with torch.no_grad(), loka.probe(model, segments=lambda ids, genres: segments_of(ids)) as probe:
        for batch in progress.track(calibration, description="probe"):
            model(*batch)
    probe.save(out / "profile.safetensors")
    profile = loka.load_profile(out / "profile.safetensors")

    # 3. Compile: Inductor's default; loka for this machine; and loka for a GPU that is not here.
    models = {
        "eager": model,
        "inductor": torch.compile(model),
        "loka": torch.compile(model, backend="loka", options={"profile": profile, "target": "cpu"}),
        "h100": torch.compile(model, backend="loka", options={"profile": profile, "target": "h100"}),
    }
    batches = test.batches(options.batch)
    compile_seconds = {}
    with torch.no_grad():
        for name in progress.track(list(models), description="compile: eager, Inductor, loka, loka for h100"):
            started = time.perf_counter()
            models[name](*batches[0])
            compile_seconds[name] = time.perf_counter() - started

    # 4. Quality: every model on the whole test set.
    qualities = {}
    for name, variant in models.items():
        logits = training.predict(variant, progress.track(batches, description=f"test set: {name}"))
        qualities[name] = quality(logits[: len(test)], test.labels)

    # 5. Speed: the three that run on this machine for real, in turns, on the same batch.
    race = Race({name: lambda m=models[name]: m(*batches[0]) for name in ("eager", "inductor", "loka")})
    with torch.no_grad():
        rounds, started = race.rounds(options.rounds), time.perf_counter()
        for number in progress.track(rounds, total=options.rounds, description="race: eager, Inductor, loka"):
            if number + 1 >= MIN_ROUNDS and time.perf_counter() - started > RACE_SECONDS:
                break  # a slow machine

    # 6. Read the result: every decision with its reason, and every graph before and after each pass.
    explained = {"cpu": loka.explain(models["loka"]), "h100": loka.explain(models["h100"])}
    plans = {target: loka.plan(models[name], graph=0) for target, name in (("cpu", "loka"), ("h100", "h100"))}
    plans["cpu"].save(out / "plan.json")
    plans["h100"].save(out / "plan_h100.json")
    for target, name in {"cpu": "loka", "h100": "h100"}.items():
        reports.write_graphs(loka.records(models[name]), out / "graphs" / target)
    reports.plot_plans(plans, out / "error_against_speed.png")

    # 7. Say what came of it.
    results = summarize(race, qualities, {target: e.rows for target, e in explained.items()})
    results |= {
        "hardware": plans["cpu"].pins.get("hardware", ""),
        "recipes": dict(Counter(row.recipe for row in explained["cpu"].rows if row.lowered)),
        "batch": options.batch,
        "rounds": len(race.times["loka"]),
        "test_rows": len(test),
        "train_seconds": train_seconds,
        "first_call_seconds": compile_seconds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")

    console.rule("loka on this machine: times measured here")
    console.print(explained["cpu"])
    console.rule("loka for an H100: times modelled, FP8 numerics emulated here")
    console.print(explained["h100"])
    console.print(comparison(results, qualities))
    console.print(verdict(results))
    console.print(f"Profile, plans, graphs, plot and results.json are in {out}/")
    return results


def segments_of(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The columns of the ids that say whom a rating is by."""
    return {name: ids[:, movielens.FIELDS.index(name)] for name in SEGMENTS}


def summarize(race: Race, qualities: dict[str, dict[str, float]], rows: dict[str, list]) -> dict[str, object]:
    """The figures of results.json, and the three criteria with their verdicts."""
    eager, ours = qualities["eager"], qualities["loka"]
    results: dict[str, object] = {
        f"{metric}_{name}": value for name, of in qualities.items() for metric, value in of.items()
    }
    results |= {f"ms_{name}": race.ms(name) for name in race.times}
    results |= {
        "speedup_over_inductor": {name: race.speedup(name, over="inductor") for name in race.times},
        "auc_change": ours["auc"] - eager["auc"],
        "logloss_change_relative": ours["logloss"] / eager["logloss"] - 1,
        "sites": len(rows["cpu"]),
        "lowered_sites": sum(row.lowered for row in rows["cpu"]),
        "gemm_speedup": reports.total_speedup(rows["cpu"]),
        "h100_sites": len(rows["h100"]),
        "h100_lowered_sites": sum(row.lowered for row in rows["h100"]),
        "h100_gemm_speedup_modelled": reports.total_speedup(rows["h100"]),
    }
    results["wanted_speedup"] = MIN_SPEEDUP if (results["gemm_speedup"] or 1.0) >= FAST else NEVER_SLOWER
    results["criteria"] = {
        "speed-up": results["speedup_over_inductor"]["loka"] >= results["wanted_speedup"],
        "auc": abs(results["auc_change"]) <= MAX_AUC_CHANGE,
        "logloss": abs(results["logloss_change_relative"]) <= MAX_LOGLOSS_CHANGE,
    }
    return results


def comparison(results: dict[str, object], qualities: dict[str, dict[str, float]]) -> Table:
    """Quality and speed side by side."""
    table = Table(title=f"{results['test_rows']:,} test ratings; batch {results['batch']}, {results['rounds']} rounds")
    for column in ("model", "AUC", "log loss", "NE", "ms per batch", "speed-up over Inductor", "time is"):
        table.add_column(column, justify="left" if column in ("model", "time is") else "right")
    for name, of in qualities.items():
        figures = [f"{of['auc']:.5f}", f"{of['logloss']:.5f}", f"{of['ne']:.5f}"]
        if name == "h100":
            speedup = results["h100_gemm_speedup_modelled"]
            speed = ["–", f"GEMMs before / after: {speedup:.2f}x" if speedup else "–", "modelled for an H100"]
        else:
            speedup = results["speedup_over_inductor"][name]
            speed = [f"{results[f'ms_{name}']:.1f}", f"{speedup:.2f}x", "measured here, median"]
        table.add_row("loka, target h100" if name == "h100" else name, *figures, *speed)
    return table


def verdict(results: dict[str, object]) -> Table:
    """The criteria with a mark each, and what this CPU's kernels can do."""
    gemms = results["gemm_speedup"] or 1.0
    can = f"this CPU can make the GEMMs {gemms:.2f}x as fast within the error budget"
    can += "" if gemms >= FAST else f",\ntoo little to ask for {MIN_SPEEDUP}x of the whole model"
    runs = ", ".join(f"{recipe} at {count}" for recipe, count in results["recipes"].items()) or "nothing lower"
    why = f"\nit is {results['hardware']},\nwhere the plan runs {runs} of {results['sites']} GEMMs; reasons above"
    table = Table(title="What it must show", caption=can + why, caption_justify="left")
    for column in ("criterion", "wanted", "seen", ""):
        table.add_column(column)
    lines = {
        "speed-up": (
            "speed-up over Inductor's default, median of the rounds' ratios",
            f">= {results['wanted_speedup']}x",
            f"{results['speedup_over_inductor']['loka']:.2f}x",
        ),
        "auc": ("|AUC change|", f"<= {MAX_AUC_CHANGE}", f"{abs(results['auc_change']):.6f}"),
        "logloss": (
            "|relative log-loss change|",
            f"<= {MAX_LOGLOSS_CHANGE:.2%}",
            f"{abs(results['logloss_change_relative']):.4%}",
        ),
    }
    for name, line in lines.items():
        table.add_row(*line, "[green]✓ pass[/]" if results["criteria"][name] else "[red]✗ FAIL[/]")
    return table


def bars(console: Console) -> Progress:
    """Progress bars that stay when they are done, with the time each part took."""
    columns = (TextColumn("{task.description:<42}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="loka on a real model and real data, end to end")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the training ratings")
    parser.add_argument("--batch", type=int, help="ratings a batch when serving (4096; 256 with --quick)")
    parser.add_argument("--out", type=Path, default=Path("build/quickstart"), help="where to write")
    parser.add_argument("--rounds", type=int, help="rounds of the race (21; 3 with --quick)")
    parser.add_argument("--quick", action="store_true", help="a tiny model on a few ratings: a rehearsal, no result")
    options = parser.parse_args(argv)
    options.batch = options.batch or (256 if options.quick else 4096)
    options.rounds = options.rounds or (3 if options.quick else 21)
    return options


if __name__ == "__main__":
    main()
