"""Lattice Networks against DLRM, DCNv2, MaskNet, BST and Wukong at equal FLOPs, and what each of their parts is worth.

    python -m examples.lattice.networks.bench [--problems movielens clothing] [--seeds 3] [--json FILE] [--plot FILE]

All models have tokens of one width, the same features, sequences and tasks, and are trained by the same passes of Adam;
the others' hidden layers are as wide as a Lattice Network's FLOPs allow. FLOPs are counted, of one served row (one
domain's copy of what is untied). The ablation trains the network without one part at a time: its FLOPs then differ.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from examples.lattice.kept import Kept, bench_parser
from examples.lattice.networks import fit, samples
from examples.lattice.networks.baselines import BODIES, at_flops, baseline
from examples.lattice.networks.loss import Objective
from examples.lattice.networks.model import LatticeNetwork
from examples.lattice.networks.samples import Samples
from examples.lattice.networks.size import Size

LATTICE = "Lattice Network"
SIZE = Size()
FEW = {"movielens": 40, "clothing": 8}  # a rehearsal takes one row of so many: some portfolios keep 50 test rows
WITHOUT: Mapping[str, Callable[[Size], Size]] = {
    "all transformers before all fusions": lambda size: replace(size, interleaved=False),
    "without untying": lambda size: replace(size, untied=(), by_domain=False),
    "without extended storage": lambda size: replace(size, storage=False),
    "without QK-norm": lambda size: replace(size, qk_norm=False),
    "LayerNorm and SiLU for SwishRMSNorm": lambda size: replace(size, rms=False),
}
CORRELATION = 0.1
WITH = "with the correlation loss"


def main(argv: list[str] | None = None) -> dict[str, object]:
    options = parse(argv)
    kept = Kept(options.json, settings(options.quick))
    for name in options.problems:
        for seed in kept.left(name, options.seeds):
            found = samples.load(name, seed)
            kept.add(name, seed, arms(found.few(FEW[name]) if options.quick else found, seed))
        Console(width=130).print(table(name, kept.runs(name, options.seeds)))
    kept.more = {"torch": torch.__version__}
    kept.write()
    if options.plot:
        plot(kept, options)
    return kept.more


def settings(quick: bool) -> dict[str, Any]:
    """What figures depend on beside the seed."""
    passes = {name: asdict(of) for name, of in samples.PASSES.items()}
    return {"size": asdict(SIZE), "passes": passes, "lengths": samples.LENGTHS, "quick": quick}


def arms(found: Samples, seed: int) -> dict[str, dict[str, Any]]:
    """By model its scores on the test rows, FLOPs and parameters."""
    size = replace(SIZE, untied=tuple(range(found.schema.domains)))
    budget = fit.flops_of(LatticeNetwork(found.schema, size), found)
    runs = {}
    for name in BODIES:
        hidden = at_flops(name, found, size.width, budget)
        torch.manual_seed(seed)
        runs[name] = run(baseline(name, found, size.width, hidden), found)
    for name, change in {LATTICE: lambda size: size, **WITHOUT}.items():
        torch.manual_seed(seed)
        runs[name] = run(LatticeNetwork(found.schema, change(size)), found)
    torch.manual_seed(seed)
    runs[WITH] = run(LatticeNetwork(found.schema, size), found, Objective(CORRELATION))
    return runs


def run(model: nn.Module, found: Samples, objective: Objective | None = None) -> dict[str, Any]:
    """A model trained and judged; means are over portfolios."""
    flops, (tables, weights) = fit.flops_of(model, found), fit.parameters(model)
    for _ in fit.train(model, model, found, found.train, objective or Objective()):
        pass
    scores = fit.judge(found, found.test, fit.predict(model, found, found.test))
    means = {name: fmean(each[name] for each in scores.values()) for name in ("auc", "ne")}
    worst = min(each["auc"] for each in scores.values())
    return {**means, "worst": worst, "flops": flops, "tables": tables, "weights": weights, "portfolios": scores}


def table(problem: str, runs: dict[str, list[dict[str, Any]]]) -> Table:
    seeds = len(runs[LATTICE])
    shown = Table(title=f"{problem}: mean and deviation of {seeds} seeds, mean over portfolios")
    for column in ("", "kFLOP a row", "weights", "AUC", "NE", "worst AUC", "AUC above the network's in"):
        shown.add_column(column, justify="right" if column else "left")
    for name, of in runs.items():
        above = sum(a["auc"] > b["auc"] for a, b in zip(of, runs[LATTICE], strict=True))
        shown.add_row(
            name,
            f"{of[0]['flops'] / 1e3:.0f}",
            f"{of[0]['weights'] / 1e3:.0f}k",
            *(spread([run[key] for run in of]) for key in ("auc", "ne", "worst")),
            "" if name == LATTICE else f"{above} of {seeds}",
        )
    return shown


def spread(values: list[float]) -> str:
    return f"{fmean(values):.4f} ± {pstdev(values):.4f}"


def plot(kept: Kept, options: argparse.Namespace) -> None:
    """Mean AUC with its spread, a panel a problem."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(options.problems), figsize=(6 * len(options.problems), 4), squeeze=False)
    for panel, name in zip(panels[0], options.problems, strict=True):
        runs = kept.runs(name, options.seeds)
        names = list(runs)[::-1]
        means = [fmean(run["auc"] for run in runs[each]) for each in names]
        spreads = [pstdev([run["auc"] for run in runs[each]]) for each in names]
        panel.errorbar(means, range(len(names)), xerr=spreads, fmt="o")
        panel.axvline(means[names.index(LATTICE)], linestyle="--", color="grey", linewidth=1)
        panel.set(title=name, xlabel="AUC, mean over portfolios", yticks=range(len(names)), yticklabels=names)
    figure.tight_layout()
    figure.savefig(options.plot, dpi=120)
    pyplot.close(figure)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = bench_parser(__doc__)
    parser.add_argument("--problems", nargs="+", choices=tuple(FEW), default=list(FEW))
    parser.add_argument("--plot", type=Path, help="where to draw them")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
