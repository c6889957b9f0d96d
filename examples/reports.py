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


def plot_plans(plans: Mapping[str, Any], path: Path) -> None:
    """One panel a plan, one mark a candidate of a site: its error against its speed; filled where it was chosen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    size = (7 * len(plans), 5.5)
    figure, panels = pyplot.subplots(1, len(plans), figsize=size, squeeze=False, layout="constrained")
    colours = dict(zip(recipes_of(plans.values()), pyplot.get_cmap("tab10").colors, strict=False))
    for panel, (target, plan) in zip(panels[0], plans.items(), strict=True):
        points = candidates_of(plan)
        for recipe, colour in colours.items():
            for chosen in (False, True):
                speed = [s for r, s, _, c in points if (r, c) == (recipe, chosen)]
                mere = [m for r, _, m, c in points if (r, c) == (recipe, chosen)]
                style = {"color": colour} if chosen else {"facecolors": "none", "edgecolors": colour, "alpha": 0.6}
                panel.scatter(speed, mere, s=70 if chosen else 25, **style)
        panel.set(xscale="log", yscale="log", xlabel="speed-up of the GEMM, casts included (right is faster)")
        panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=20))
        panel.xaxis.set_major_formatter(lambda speed, _: f"{speed:g}x")
        panel.xaxis.set_minor_formatter(ticker.NullFormatter())
        panel.set_ylabel("MERE against float32 (down is closer)")
        panel.axhline(MAX_MERE, color="grey", linestyle="--", linewidth=1)
        panel.axvline(MIN_SPEEDUP, color="grey", linestyle="--", linewidth=1)
        panel.text(panel.get_xlim()[0], MAX_MERE, " max MERE", va="bottom", color="grey", fontsize=8)
        panel.text(MIN_SPEEDUP, panel.get_ylim()[0], " min speed-up", va="bottom", color="grey", fontsize=8)
        right = panel.get_xlim()[1]
        panel.axvspan(MIN_SPEEDUP, right, ymax=_height(panel, MAX_MERE), color="tab:green", alpha=0.06)
        panel.set_xlim(right=right)
        source = next((d.before.time_source for d in plan.decisions.values() if d.before.time_source), "unknown")
        panel.set_title(f"target {target}: {len(plan.lowered)} of {len(plan.decisions)} sites lowered\ntimes {source}")
    marks = [pyplot.Line2D([], [], marker="o", linestyle="", color=colour, label=r) for r, colour in colours.items()]
    hollow = {"color": "none", "markeredgecolor": "grey"}
    marks.append(pyplot.Line2D([], [], marker="o", linestyle="", label="rejected", **hollow))
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def candidates_of(plan: Any) -> list[tuple[str, float, float, bool]]:
    """(recipe, speed-up, MERE, chosen) of every timed candidate of every site."""
    return [
        (name.split("/")[0], decision.before.time_us / score.time_us, score.mere, name == str(decision.chosen))
        for decision in plan.decisions.values()
        for name, score in decision.scores.items()
        if name != "keep" and score.time_us and decision.before.time_us and score.mere > 0
    ]


def recipes_of(plans: Iterable[Any]) -> list[str]:
    return sorted({recipe for plan in plans for recipe, *_ in candidates_of(plan)})


def _height(panel: Any, value: float) -> float:
    """Where a value lies on the panel's y axis, from 0 to 1."""
    return panel.transAxes.inverted().transform(panel.transData.transform((1, value)))[1]
