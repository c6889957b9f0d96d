"""Arms against each other: the same rows, the same seeds, one thing changed at a time.

A cell is a way of teaching (arm, beta, alpha, weight, the teacher's delay). All cells of a vertical learn from the
same rows in the same order from the same first weights, so cells are compared seed by seed, which leaves out what a
seed does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from examples.exfm import files
from examples.exfm.evaluate import began, by_student
from examples.exfm.stream.events import Schema
from examples.exfm.students import StudentSpec
from examples.exfm.train import train

TABLE = {"arm": "arm", "delay": "delay", "beta": "β", "alpha": "α", "weight": "w"}


@dataclass(frozen=True)
class Cell:
    """delay: days that the teacher lags. An arm without a teacher has one cell, whatever the other dials."""

    arm: str
    delay: float = 0.0
    beta: float = 1.0
    alpha: float = 1.0
    weight: float = 1.0

    def __str__(self) -> str:
        if self.arm == "none":
            return "none"
        dials = [f"{TABLE[name]}={value:g}" for name, value in self.dials.items() if name != "delay" and value != 1]
        return ", ".join([self.arm, f"{self.delay:g} d", *dials])

    @property
    def dials(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("delay", "beta", "alpha", "weight")}


Found = dict[Cell, dict[int, float]]
"""NE by seed."""


def grid(
    arms: Iterable[str],
    delays: Iterable[float] = (0.0,),
    betas: Iterable[float] = (1.0,),
    alphas: Iterable[float] = (1.0,),
    weights: Iterable[float] = (1.0,),
) -> list[Cell]:
    """Every combination that means something, once: no teacher has no dials, a shared head no beta."""
    cells = []
    for arm in arms:
        for delay in delays:
            for beta in betas:
                for alpha in alphas:
                    for weight in weights:
                        cell = Cell(arm, delay, 1.0 if arm == "shared" else beta, alpha, weight)
                        cells.append(Cell("none") if arm == "none" else cell)
    return list(dict.fromkeys(cells))


def compare(
    works: Mapping[float, Path],
    schema: Schema,
    base: Sequence[StudentSpec],
    cells: Sequence[Cell],
    seeds: Sequence[int],
    skip: int,
) -> dict[str, Found]:
    """By vertical, the NE of every cell and seed. works: the folder whose joined rows have scores of a teacher that
    lags so many days; base: a student a vertical; what an earlier run has done is not done again."""
    found: dict[str, Found] = {spec.vertical: {} for spec in base}
    for delay, work in works.items():
        start = began(work)
        mine = [cell for cell in cells if cell.delay == delay or (cell.arm == "none" and delay == min(works))]
        for spec, seed in product(base, seeds) if mine else ():
            named = {f"{spec.vertical}/{cell}": cell for cell in mine}
            specs = [
                replace(spec, name=name, arm=c.arm, beta=c.beta, alpha=c.alpha, weight=c.weight, seed=seed)
                for name, c in named.items()
            ]
            out = work / "arms" / f"seed-{seed}-{_digest(specs)}"
            train(work, schema, specs, out, every=10**9)
            for name, of in by_student(out, start, skip).items():
                ne = of["total"]["ne"]  # None of a student that gives no numbers
                found[spec.vertical].setdefault(named[name], {})[seed] = math.nan if ne is None else ne
    return found


@dataclass(frozen=True)
class Difference:
    """Of NE, relative, one cell against another, over the seeds that both have. sure: how many standard errors from
    0."""

    mean: float
    error: float
    seeds: int

    @property
    def sure(self) -> float:
        return abs(self.mean) / self.error if self.error else float("inf")


def difference(found: Found, cell: Cell, over: Cell) -> Difference:
    """Below 0 the cell is better."""
    seeds = sorted(set(found[cell]) & set(found[over]))
    changes = [found[cell][seed] / found[over][seed] - 1 for seed in seeds]
    error = stdev(changes) / len(changes) ** 0.5 if len(changes) > 1 else 0.0
    return Difference(fmean(changes), error, len(seeds))


def orders(found: Found, delay: float, cells: Sequence[Cell]) -> list[tuple[str, bool, Difference]]:
    """No distillation > shared > Auxiliary Head >= with Student Adapter in NE: which of the three hold, and by how
    much. Of other dials than the delay, those that stand as near to their default as they were tried."""
    at = {}
    for arm in {cell.arm for cell in cells}:
        mine = [cell for cell in cells if cell.arm == arm]
        base = _nearest_default(_tried(mine)) | {"delay": delay}
        at.update((arm, cell) for cell in mine if arm == "none" or cell.dials == base)
    said = []
    for worse, better in (("none", "shared"), ("shared", "auxiliary"), ("auxiliary", "adapter")):
        if worse in at and better in at:
            change = difference(found, at[better], at[worse])
            said.append((f"{better} better than {worse}", change.mean < 0, change))
    return said


def _digest(specs: Sequence[StudentSpec]) -> str:
    """Another set of students goes to another folder."""
    return files.checksum(json.dumps([asdict(spec) for spec in specs]).encode())[:12]


def markdown(found: Mapping[str, Found]) -> str:
    """One line a cell and vertical: NE over seeds, and against no distillation."""
    lines = ["| vertical | taught | NE, mean | from .. to | against none | orders of its error |", "| --- " * 6 + "|"]
    for vertical, cells in found.items():
        for cell, of in cells.items():
            line = (
                f"| {vertical} | {cell} | {fmean(of.values()):.4f} | {min(of.values()):.4f} .. {max(of.values()):.4f} "
            )
            if cell.arm != "none" and Cell("none") in cells:
                change = difference(cells, cell, Cell("none"))
                line += f"| {change.mean:+.2%} ± {change.error:.2%} | {change.sure:.1f} |"
            else:
                line += "| | |"
            lines.append(line)
    return "\n".join(lines)


def plot(found: Mapping[str, Found], path: Path) -> None:
    """By vertical and dial, the change of NE against no distillation at each value of the dial, the others standing as
    near to their default as they were tried; bars are standard errors over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tried = _tried([cell for of in found.values() for cell in of])
    base = _nearest_default(tried)
    dials = [name for name, values in tried.items() if len(values) > 1] or ["delay"]
    figure, panels = pyplot.subplots(
        len(found), len(dials), figsize=(5 * len(dials), 3 * len(found)), squeeze=False, sharey="row"
    )
    for row, (vertical, of) in zip(panels, found.items(), strict=True):
        for panel, dial in zip(row, dials, strict=True):
            for arm, line in _lines(of, dial, base).items():
                values, changes = zip(*sorted(line.items()), strict=True)
                means, errors = [each.mean * 100 for each in changes], [each.error * 100 for each in changes]
                panel.errorbar(values, means, errors, label=arm, capsize=3)
            panel.axhline(0, color="gray", linewidth=0.5)
            panel.set_title(vertical)
            panel.set_xlabel("the teacher's delay in days" if dial == "delay" else TABLE[dial])
        row[0].set_ylabel("NE against none, %")
        row[0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def _tried(cells: Sequence[Cell]) -> dict[str, set[float]]:
    """The values of each dial; no teacher has none."""
    return {name: {cell.dials[name] for cell in cells if cell.arm != "none"} for name in Cell("auxiliary").dials}


def _nearest_default(tried: Mapping[str, set[float]]) -> dict[str, float]:
    """Of each dial the value that is nearest to its default."""
    return {
        name: min(tried[name], key=lambda value, default=default: abs(value - default), default=default)
        for name, default in Cell("auxiliary").dials.items()
    }


def _lines(of: Found, dial: str, base: Mapping[str, float]) -> dict[str, dict[float, Difference]]:
    """By arm and value of a dial."""
    lines: dict[str, dict[float, Difference]] = {}
    for cell in of:
        others = all(cell.dials[name] == value for name, value in base.items() if name != dial)
        if cell.arm != "none" and others and Cell("none") in of:
            lines.setdefault(cell.arm, {})[cell.dials[dial]] = difference(of, cell, Cell("none"))
    return lines


def as_json(found: Mapping[str, Found]) -> list[dict[str, Any]]:
    """Rows of plain data."""
    return [
        {"vertical": vertical, **vars(cell), "seed": seed, "ne": ne}
        for vertical, cells in found.items()
        for cell, of in cells.items()
        for seed, ne in of.items()
    ]
