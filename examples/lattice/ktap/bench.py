"""What of a teacher's lead reaches a student: by soft labels alone, by embeddings, by both (KTAP), and through a store
that forgets.

    python -m examples.lattice.ktap.bench [--seeds 5] [--json FILE] [--plot FILE]

On MovieLens as movielens.py has it. A gain is AUC above, or NE below, that of the student without a teacher (mean of
both tasks); an arm's transfer is its gain over the teacher's; KTAP's ratio is its gain over that of labels alone.

A soft label holds a student back whether it knows anything or not. Constant soft labels are the control: for every hit
the teacher's base rate in training, which says nothing about the pair. What they gain is not the teacher's knowledge.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, pstdev

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from examples.lattice.kept import Kept, bench_parser
from examples.lattice.ktap.movielens import Stream, ask, stream, study, teach, through_the_store
from examples.lattice.ktap.record import Knowledge
from examples.lattice.ktap.student import Use
from examples.lattice.ktap.teacher import HOUR
from examples.metrics import auc, normalized_entropy

Runs = dict[str, list[dict[str, float]]]


@dataclass(frozen=True)
class Arm:
    """What a student uses; constant: its soft labels are the base rates, on the same hits."""

    use: Use
    constant: bool = False


ALONE, LABELS, KTAP, TEACHER = "no teacher", "soft labels alone", "KTAP", "the teacher"
CONSTANT = "constant soft labels"
ARMS = {
    ALONE: Arm(Use(embedding=False, labels=False)),
    CONSTANT: Arm(Use(embedding=False), constant=True),
    LABELS: Arm(Use(embedding=False)),
    "embedding alone": Arm(Use(labels=False)),
    "embedding, constant soft labels": Arm(Use(), constant=True),
    KTAP: Arm(Use()),
}
BETTER = {"auc": 1, "ne": -1}  # the direction of a gain
CLAIM = 1.3  # the paper's ratio
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
    settings = {
        "arms": list(ARMS),
        "ttl": TTL,
        "ttls": TTLS,
        "covered": COVERED,
        "what a model has not learned": "unknown, which has learned its vector",
        "quick": options.quick,
    }
    kept = Kept(options.json, settings)
    for seed in kept.left("arms", options.seeds):
        kept.add("arms", seed, arms(seed, options.quick))
    runs, curve = kept.runs("arms", options.seeds), {}
    if not options.no_curve:
        for seed in kept.left("curve", options.seeds):
            kept.add("curve", seed, points(seed, options.quick))
        curve = kept.runs("curve", options.seeds)
    console = Console(width=120)
    console.print(table(runs))
    if curve:
        console.print(curves(curve, runs))
    for measure in BETTER:
        for base in (ALONE, CONSTANT):
            console.print(said(measure, runs, base))
    kept.more = {
        "torch": torch.__version__,
        "transfer": {measure: transfer(runs, measure) for measure in BETTER},
        "ratio by seed": {measure: ratios(runs, measure) for measure in BETTER},
    }
    kept.write()
    if options.plot:
        plot(curve, runs, options.plot)
    return kept.more


def arms(seed: int, quick: bool) -> dict[str, dict[str, float]]:
    """The scores of one seed: the teacher's, and every arm's through one store."""
    found = stream(seed, FEW if quick else None)
    teacher = teach(found, seed)
    given = through_the_store(found, teacher, TTL, 1.0, seed)
    _, logits = ask(found, teacher, torch.arange(found.second, len(found.ids)))
    run = {TEACHER: judge(found, logits)}
    for name, arm in ARMS.items():
        run[name] = judge(found, study(found, constant(found, given) if arm.constant else given, arm.use, seed))
    return run


def constant(found: Stream, given: Knowledge) -> Knowledge:
    """The same hits and embeddings; as logits, by task, the base rate of what the teacher learned from."""
    rates = found.rows.labels[: found.first].mean(dim=0)
    return Knowledge(given.embedding, torch.logit(rates) * given.hit[:, None], given.hit)


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


def gain(runs: Runs, arm: str, measure: str, base: str = ALONE) -> list[float]:
    """By seed, how much better an arm is than no teacher, or than another arm."""
    pairs = zip(runs[arm], runs[base], strict=True)
    return [BETTER[measure] * (run[measure] - other[measure]) for run, other in pairs]


def transfer(runs: Runs, measure: str = "ne") -> dict[str, float]:
    """By arm, its gain over the teacher's, both the mean of the seeds."""
    teachers = fmean(gain(runs, TEACHER, measure))
    return {arm: fmean(gain(runs, arm, measure)) / teachers for arm in runs}


def ratios(runs: Runs, measure: str, base: str = ALONE) -> list[float]:
    """By seed, KTAP's gain over that of soft labels alone. One of a seed in which labels gain next to nothing, or lose,
    says nothing."""
    both = zip(gain(runs, KTAP, measure, base), gain(runs, LABELS, measure, base), strict=True)
    return [ktap / labels if labels else float("nan") for ktap, labels in both]


def said(measure: str, runs: Runs, base: str = ALONE) -> str:
    """KTAP's ratio: of the mean gains, and by seed."""
    each = ratios(runs, measure, base)
    ktap, labels = (gain(runs, arm, measure, base) for arm in (KTAP, LABELS))
    gaining = [ratio for ratio, z in zip(each, labels, strict=True) if z > 0]
    reached = sum(ratio >= CLAIM for ratio in gaining)
    better = sum(k > z for k, z in zip(ktap, labels, strict=True))
    return (
        f"KTAP's gain in {measure.upper()} upon {base}, over that of soft labels alone: "
        f"{fmean(ktap) / fmean(labels):.2f}; by seed {min(each):.2f} to {max(each):.2f}, median {median(each):.2f}; "
        f"larger in {better} seeds of {len(each)}, {CLAIM} times or more in {reached} of the {len(gaining)} in which "
        "labels gain"
    )


def row(of: list[dict[str, float]], name: str, runs: Runs) -> list[str]:
    """A table's cells on an arm: what it reaches, and its transfer, in both measures."""
    shares = [transfer({**runs, name: of}, measure)[name] for measure in BETTER]
    return [spread([run[measure] for run in of]) for measure in BETTER] + [f"{share:.0%}" for share in shares]


def table(runs: Runs) -> Table:
    shown = Table(title=f"MovieLens, last 20 %, mean of two tasks, {len(runs[ALONE])} seeds, TTL {TTL / HOUR:g} h")
    for column in ("", "AUC", "NE", "transfer in AUC", "in NE"):
        shown.add_column(column, justify="right" if column else "left")
    for arm, of in runs.items():
        shown.add_row(arm, *row(of, arm, runs))
    return shown


def curves(curve: Runs, runs: Runs) -> Table:
    shown = Table(title="KTAP by time to live and by the share of pairs the teacher gets to")
    for column in ("", "hits", "AUC", "NE", "transfer in AUC", "in NE"):
        shown.add_column(column, justify="right" if column else "left")
    for name, of in curve.items():
        shown.add_row(name, f"{fmean(run['hits'] for run in of):.0%}", *row(of, name, runs))
    return shown


def spread(values: list[float]) -> str:
    return f"{fmean(values):.4f} ± {pstdev(values):.4f}"


def plot(curve: Runs, runs: Runs, path: Path) -> None:
    """AUC and NE against hits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4))
    for panel, measure in zip(panels, BETTER, strict=True):
        for name, of in curve.items():
            values = [run[measure] for run in of]
            hits = fmean(run["hits"] for run in of)
            panel.errorbar(hits, fmean(values), yerr=pstdev(values), marker="o", label=name)
        for arm in (ALONE, CONSTANT, LABELS, TEACHER):
            height = fmean(run[measure] for run in runs[arm])
            panel.axhline(height, linestyle="--", color="grey")
            panel.text(0.99, height, arm, transform=panel.get_yaxis_transform(), ha="right", va="bottom", fontsize=8)
        panel.set(xlim=(0, 1.05), xlabel="share of impressions with a teacher's record")
        panel.set_ylabel(f"{measure.upper()}, last 20 %")
    panels[0].legend(fontsize=7, loc="upper left")
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
