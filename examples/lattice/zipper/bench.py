"""Zipper against single windows, their ensemble, FNW, ES-DFM and an oracle, test-then-train on streams with late
labels.

    python -m examples.lattice.zipper.bench [--problems movielens cdnow] [--seeds 5] [--json FILE] [--plot FILE]
    python -m examples.lattice.zipper.bench --criteo data.txt    # for who holds Criteo's conversion log

Share closed is (arm - base) / (oracle - base) of the seeds' means, with the base "pretrained, then fixed" (as the
papers have it) or "vanilla", on the rows whose longest window closes within the log. On MovieLens delays are drawn,
spread as Criteo's are or from CDNOW's gaps: semi-synthetic. A seed changes weights, order, the hash that assigns
windows, and on MovieLens the delays. Wins are seeds in which Zipper has the better AUC, the better log loss.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import fmean, pstdev

import torch
from rich.console import Console
from rich.table import Table

from examples.lattice.held import criteo_file
from examples.lattice.kept import Kept, bench_parser
from examples.lattice.zipper import arms, problems
from examples.lattice.zipper.arms import NESTED, ORACLE, PRETRAINED, VANILLA, ZIPPER, Problem, Settings
from examples.lattice.zipper.windows import Windows
from examples.metrics import quality

SETTINGS = Settings(chunk=128, batch=128, rate=1.5e-3)
QUICK = slice(0, 4000)
PROTOCOL = "rows whose longest window the log closes; learned strictly after they are predicted"
"""Said in the file of figures: those of another protocol are others."""
NAMES = ("movielens-as-criteo", "movielens", "movielens-by-frequency", "cdnow")


def main(argv: list[str] | None = None) -> dict[str, object]:
    options = parse(argv)
    ways = replace(SETTINGS, rate=options.rate)
    of = {name: getattr(options, name) for name in ("shares", "quick", "before")}
    settings = {"protocol": PROTOCOL, "settings": asdict(ways), **of}
    if options.criteo:
        settings["criteo"] = criteo_file(options.criteo)
    kept = Kept(options.json, settings)
    console = Console(width=140)
    for name in options.problems:
        for seed in kept.left(name, options.seeds):
            problem = load(name, seed, options)
            labels = problem.labels()
            run = {arm: quality(logits, labels) for arm, logits in arms.run(problem, ways, seed).items()}
            known = problem.log.delays()[: problem.stop]
            rates = [float((known <= window).float().mean()) for window in problem.windows.seconds]
            judged = {"judged": len(labels), "censored": len(problem.log) - problem.stop}
            kept.more[name] = {**asdict(problem.windows), "problem": problem.name, "converted": rates, **judged}
            kept.add(name, seed, run)
        found = summary(kept.runs(name, options.seeds))
        kept.more[name]["arms"] = found
        console.print(table(f"{kept.more[name]['problem']}, {options.seeds} seeds", found))
    kept.more |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    kept.write()
    if options.plot:
        plot(kept, options)
    return kept.more


def load(name: str, seed: int, options: argparse.Namespace) -> Problem:
    rows = QUICK if options.quick else slice(None)
    if name == "criteo":
        problem = problems.criteo_log(options.criteo)
    else:
        makers = {
            "movielens-as-criteo": problems.movielens_as_criteo,
            "movielens": problems.movielens_with_delays,
            "movielens-by-frequency": partial(problems.movielens_with_delays, by_frequency=True),
            "cdnow": problems.cdnow,
        }
        problem = makers[name](seed, rows)
    if options.before:
        problem = problems.before_stream(problem)
    if options.shares:
        problem = replace(problem, windows=Windows(problem.windows.seconds, tuple(options.shares)))
    return problem


def summary(figures: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """By arm: mean and deviation of AUC, log loss and NE, share closed, and how many seeds Zipper was better in."""
    means = {arm: {name: fmean(run[name] for run in runs) for name in runs[0]} for arm, runs in figures.items()}
    found = {}
    for arm, runs in figures.items():
        found[arm] = {**means[arm], **{f"{name} sd": pstdev([run[name] for run in runs]) for name in runs[0]}}
        for base in (PRETRAINED, VANILLA):
            for name in ("auc", "logloss"):
                gap = means[ORACLE][name] - means[base][name]
                closed = (means[arm][name] - means[base][name]) / gap if gap else float("nan")
                found[arm][f"{name} closed from {base}"] = closed
        for name in (ZIPPER, NESTED):
            pairs = list(zip(runs, figures[name], strict=True))
            found[arm][f"auc under {name}"] = sum(zipper["auc"] > run["auc"] for run, zipper in pairs)
            found[arm][f"logloss under {name}"] = sum(zipper["logloss"] < run["logloss"] for run, zipper in pairs)
    return found


def table(title: str, found: dict[str, dict[str, float]]) -> Table:
    shown = Table(title=title)
    shown.add_column("arm")
    for column in (
        "AUC",
        "NE",
        "AUC closed: pretrained",
        "vanilla",
        "NE closed: pretrained",
        "vanilla",
        "Zipper wins",
        "nested wins",
    ):
        shown.add_column(column, justify="right")
    for arm, of in found.items():
        shown.add_row(
            arm,
            f"{of['auc']:.4f} ± {of['auc sd']:.4f}",
            f"{of['ne']:.4f} ± {of['ne sd']:.4f}",
            *(
                f"{of[f'{name} closed from {base}']:.0%}"
                for name in ("auc", "logloss")
                for base in (PRETRAINED, VANILLA)
            ),
            *(f"{of[f'auc under {name}']}, {of[f'logloss under {name}']}" for name in (ZIPPER, NESTED)),
        )
    return shown


def plot(kept: Kept, options: argparse.Namespace) -> None:
    """AUC of every seed, one panel a problem."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(options.problems), figsize=(6 * len(options.problems), 4), squeeze=False)
    for panel, name in zip(panels[0], options.problems, strict=True):
        runs = kept.runs(name, options.seeds)
        for place, (arm, of) in enumerate(runs.items()):
            panel.scatter(
                [run["auc"] for run in of],
                [place] * len(of),
                color="tab:red" if arm in (ZIPPER, NESTED) else "tab:blue",
            )
        panel.set_yticks(range(len(runs)), list(runs))
        panel.set_title(kept.more[name]["problem"])
        panel.set_xlabel("AUC, one dot a seed")
    figure.tight_layout()
    figure.savefig(options.plot, dpi=120)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = bench_parser(__doc__)
    parser.add_argument("--problems", nargs="+", choices=NAMES, default=["movielens-as-criteo", "movielens", "cdnow"])
    parser.add_argument("--criteo", type=Path, help="Criteo's conversion log; instead of the other problems")
    parser.add_argument("--shares", type=float, nargs="+", help="of the impressions that each window gets")
    parser.add_argument("--rate", type=float, default=SETTINGS.rate, help="Adam's")
    parser.add_argument(
        "--before",
        action="store_true",
        help="on what was known when the stream started, to choose shares and rate by",
    )
    parser.add_argument("--plot", type=Path, help="where to draw them")
    options = parser.parse_args(argv)
    if options.criteo:
        options.problems = ["criteo"]
    return options


if __name__ == "__main__":
    main()
