"""Files for people: the graphs of a compilation as code and diffs, and a plot of error against speed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from shutil import rmtree
from typing import Any

MAX_MERE, MIN_SPEEDUP = 0.2, 1.05  # loka's default budget


def write_graphs(records: Iterable[Any], folder: Path) -> None:
    """Per graph a folder with before.py, after.py and, numbered, one .diff for each pass that changed something."""
    rmtree(folder, ignore_errors=True)  # what an earlier run left would mislead
    for number, record in enumerate(records):
        place = folder / f"{number}-{file_name(record.name)}"
        place.mkdir(parents=True)
        (place / "before.py").write_text(record.before, encoding="utf-8")
        (place / "after.py").write_text(record.after, encoding="utf-8")
        for order, stage in enumerate(record.stages, start=1):
            if stage.diff:
                name = f"{order:02d}-{file_name(stage.name)}.diff"
                (place / name).write_text(stage.diff, encoding="utf-8")


def file_name(name: str) -> str:
    """Only letters, digits and .-_ of a name."""
    return re.sub(r"[^\w.-]+", "_", str(name)).strip("_") or "graph"


def total_speedup(rows: Sequence[Any]) -> float | None:
    """Time of all GEMMs before over after, both as the rows state them; None where no time is known."""
    timed = [row for row in rows if row.time_before_us and row.time_after_us]
    return sum(r.time_before_us for r in timed) / sum(r.time_after_us for r in timed) if timed else None


def plot_sites(rows: Mapping[str, Sequence[Any]], path: Path) -> None:
    """One panel a target, one dot a site: MERE of the chosen recipe against its speed-up, with the budget."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(rows), figsize=(8 * len(rows), 6), squeeze=False, layout="constrained"
    )
    for panel, (target, sites) in zip(panels[0], rows.items(), strict=True):
        shown = [row for row in sites if row.mere is not None and row.speedup is not None]
        for recipe in dict.fromkeys(row.recipe for row in shown):
            dots = [row for row in shown if row.recipe == recipe]
            panel.scatter([r.speedup for r in dots], [r.mere for r in dots], s=60, alpha=0.8, label=recipe)
        for row in shown:
            label = str(row.key).removesuffix(":output")
            panel.annotate(label, (row.speedup, row.mere), xytext=(5, 5), textcoords="offset points", fontsize=7)
        panel.axhline(MAX_MERE, color="grey", linestyle="--", linewidth=1)
        panel.axvline(MIN_SPEEDUP, color="grey", linestyle="--", linewidth=1)
        sources = sorted({row.time_source for row in shown if row.time_source})
        panel.set_title(f"target {target}: times {', '.join(sources) or 'unknown'}; {len(shown)} of {len(sites)} sites")
        panel.set_xlabel("speed-up of the GEMM, to the right is faster")
        panel.set_ylabel("MERE against fp32, lower is closer")
        panel.set_yscale("symlog", linthresh=1e-4)
        if shown:
            panel.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
