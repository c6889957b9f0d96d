"""What of a teacher's lead reaches a student: by soft labels alone, by embeddings, by both (KTAP), and through a store
that forgets.

    python -m examples.lattice.ktap.bench [--seeds 5] [--json FILE] [--plot FILE]

On MovieLens as movielens.py has it. A gain is NE below that of the student without a teacher (mean of both tasks); an
arm's transfer is its gain over the teacher's; KTAP's ratio is its transfer over that of labels alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean, pstdev

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from examples.lattice.kept import Kept, bench_parser
from examples.lattice.ktap.movielens import Stream, stream, study, teach, through_the_store
from examples.lattice.ktap.record import Knowledge
from examples.lattice.ktap.student import Use
from examples.lattice.ktap.teacher import HOUR
from examples.metrics import auc, normalized_entropy

ARMS = {
    "no teacher": Use(embedding=False, labels=False),
    "soft labels alone": Use(embedding=False),
    "embedding alone": Use(labels=False),
    "KTAP": Use(),
}
ALONE, LABELS, KTAP, TEACHER = "no teacher", "soft labels alone", "KTAP", "the teacher"
TTL = 6 * HOUR
TTLS = (HOUR / 4, HOUR, 6 * HOUR, 24 * HOUR)
COVERED = (0.25, 0.5, 1.0)
FEW = 4000  # ratings of a rehearsal


def judge(found: Stream, logits: Tensor) -> dict[str, float]:
    """Mean over the tasks on the last part."""
    labels = found.rows.labels[found.second :]
    pairs = list(zip(logits.T, labels.T, strict=True))
    return {"auc": fmean(auc(*pair) for pair in pairs), "ne": fmean(normalized_entropy(*pair) for pair in pairs)}


def main(argv: list[str] | None = None) -> dict[str, object]:
    options = parse(argv)
    kept = Kept(
        options.json, {"arms": list(ARMS), "ttls": TTLS, "covered": COVERED, "ttl": TTL, "quick": options.quick}
    )
    for seed in kept.left("arms", options.seeds):
        kept.add("arms", seed, arms(seed, options.quick))
    runs, curve = kept.runs("arms", options.seeds), {}
    if not options.no_curve:
        for seed in kept.left("curve", options.seeds):
            kept.add("curve", seed, points(seed, options.quick))
        curve = kept.runs("curve", options.seeds)
    console, shares = Console(width=120), transfer(runs)
    console.print(table(runs))
    if curve:
        console.print(curves(curve, runs))
    console.print(f"KTAP's transfer over that of soft labels alone: {shares[KTAP] / shares[LABELS]:.2f}")
    kept.more = {"torch": torch.__version__, "transfer": shares}
    kept.write()
    if options.plot:
        plot(curve, runs, options.plot)
    return kept.more


def arms(seed: int, quick: bool) -> dict[str, dict[str, float]]:
    """The scores of one seed: the teacher's, and every arm's through one store."""
    found = stream(seed, FEW if quick else None)
    teacher = teach(found, seed)
    given = through_the_store(found, teacher, TTL, 1.0, seed)
    last = slice(found.second, None)
    with torch.no_grad():
        _, logits = teacher(found.ids[last], found.rows.bag[last], found.counters[last])
    run = {TEACHER: judge(found, logits)}
    return run | {arm: judge(found, study(found, given, use, seed)) for arm, use in ARMS.items()}


def points(seed: int, quick: bool) -> dict[str, dict[str, float]]:
    """The scores of one seed's student, and its hits, by what the store forgets."""
    found = stream(seed, FEW if quick else None)
    run = {}
    for name, given in stores(found, teach(found, seed), seed, quick).items():
        score = judge(found, study(found, given, Use(), seed))
        run[name] = {**score, "hits": float(given.hit.float().mean())}
    return run


def stores(found: Stream, teacher: torch.nn.Module, seed: int, quick: bool) -> dict[str, Knowledge]:
    """What stores of other times to live give, and of teachers that get to fewer pairs."""
    asked = [(ttl, 1.0) for ttl in TTLS] + [(TTL, covered) for covered in COVERED[:-1]]
    return {
        f"{ttl / HOUR:g} h, {covered:.0%} of pairs": through_the_store(found, teacher, ttl, covered, seed)
        for ttl, covered in (asked[-1:] if quick else asked)
    }


def transfer(runs: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """By arm, its gain in NE over the teacher's."""
    ne = {arm: fmean(run["ne"] for run in of) for arm, of in runs.items()}
    return {arm: (ne[ALONE] - of) / (ne[ALONE] - ne[TEACHER]) for arm, of in ne.items()}


def table(runs: dict[str, list[dict[str, float]]]) -> Table:
    shown = Table(title=f"MovieLens, last 20 %, mean of two tasks, {len(runs[ALONE])} seeds, TTL {TTL / HOUR:g} h")
    for column in ("", "AUC", "NE", "transfer"):
        shown.add_column(column, justify="right" if column else "left")
    for arm, share in transfer(runs).items():
        shown.add_row(arm, *(spread([run[name] for run in runs[arm]]) for name in ("auc", "ne")), f"{share:.0%}")
    return shown


def curves(curve: dict[str, list[dict[str, float]]], runs: dict[str, list[dict[str, float]]]) -> Table:
    shown = Table(title="KTAP by time to live and by the share of pairs the teacher gets to")
    for column in ("", "hits", "AUC", "NE", "transfer"):
        shown.add_column(column, justify="right" if column else "left")
    for name, of in curve.items():
        share = transfer({**runs, name: of})[name]
        hits = f"{fmean(run['hits'] for run in of):.0%}"
        shown.add_row(name, hits, *(spread([run[key] for run in of]) for key in ("auc", "ne")), f"{share:.0%}")
    return shown


def spread(values: list[float]) -> str:
    return f"{fmean(values):.4f} ± {pstdev(values):.4f}"


def plot(curve: dict[str, list[dict[str, float]]], runs: dict[str, list[dict[str, float]]], path: Path) -> None:
    """NE against hits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(6, 4))
    for name, of in curve.items():
        panel.errorbar(
            fmean(run["hits"] for run in of),
            fmean(run["ne"] for run in of),
            yerr=pstdev([run["ne"] for run in of]),
            marker="o",
            label=name,
        )
    for arm in (ALONE, LABELS, TEACHER):
        height = fmean(run["ne"] for run in runs[arm])
        panel.axhline(height, linestyle="--", color="grey")
        panel.text(0.99, height, arm, transform=panel.get_yaxis_transform(), ha="right", va="bottom", fontsize=8)
    panel.set(xlim=(0, 1.05), xlabel="share of impressions with a teacher's record", ylabel="NE, last 20 %")
    panel.legend(fontsize=7, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = bench_parser(__doc__)
    parser.add_argument("--no-curve", action="store_true", help="the arms at one time to live alone")
    parser.add_argument("--plot", type=Path, help="where to draw the curve")
    options = parser.parse_args(argv)
    if options.plot and options.no_curve:
        parser.error("--plot draws the curve, which --no-curve leaves out: give one of the two")
    return options


if __name__ == "__main__":
    main()
