"""A run's tables, as text and as Markdown, and its plot."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console, Group
from rich.table import Table

from examples.lattice.networks import fit
from examples.lattice.pipeline.arms import CONSOLIDATED, LONGER, SEPARATE, UNTIED

Found = dict[str, Any]
"""What the stages of a run have found, by name."""


def by_arm(found: Found) -> list[list[str]]:
    """Lines of the columns ARMS; portfolios are compared with the better of their separate networks."""
    alone = best_alone(found)
    lines = []
    for arm, of in found["arms"].items():
        scores = of["portfolios"]
        better = sum(scores[name]["auc"] > auc for name, auc in alone.items())
        lines.append(
            [
                arm,
                str(len(of["flops_by_model"])),
                f"{request_flops(of) / 1e3:.0f}",
                f"{of['tables'] / 1e3:.0f}k",
                f"{of['weights'] / 1e3:.0f}k",
                *(f"{fmean(each[key] for each in scores.values()):.4f}" for key in ("auc", "ne")),
                f"{min(each['auc'] for each in scores.values()):.4f}",
                "" if arm in (SEPARATE, LONGER) else f"{better} of {len(alone)}",
                f"{of['cpu_seconds']:.0f}",
            ]
        )
    return lines


def best_alone(found: Found) -> dict[str, float]:
    """By portfolio the better AUC of its separate networks."""
    alone = [found["arms"][arm]["portfolios"] for arm in (SEPARATE, LONGER) if arm in found["arms"]]
    return {name: max(of[name]["auc"] for of in alone) for name in alone[0]}


ARMS = (
    "",
    "models",
    "kFLOP a request",
    "in tables",
    "other weights",
    "AUC",
    "NE",
    "worst AUC",
    "better than separate",
    "training, CPU s",
)


def request_flops(of: Found) -> float:
    """FLOPs of one request's row, all tasks of its domain, mean over domains: of all models that have one of them."""
    models = list(zip(of["flops_by_model"], of["groups"], strict=True))
    domains = sorted({domain for _, group in models for domain, _ in group})
    return fmean(sum(cost for cost, group in models if own in dict(group)) for own in domains)


def by_portfolio(found: Found) -> list[list[str]]:
    """Lines of: portfolio, AUC by arm."""
    arms = found["arms"]
    return [
        [name, *(f"{of['portfolios'][name]['auc']:.4f}" for of in arms.values())]
        for name in arms[SEPARATE]["portfolios"]
    ]


def by_backend(times: dict[str, dict[str, float]]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Columns and lines: milliseconds of each backend, and how many times as fast as the first the others are."""
    first, *others = next(iter(times.values()))
    lines = []
    for name, of in times.items():
        ratios = [f"{of[first] / of[each]:.2f}x" for each in others]
        lines.append([name, *(f"{of[each]:.1f}" for each in (first, *others)), *ratios])
    return ("", first, *others, *(f"{each} over {first}" for each in others)), lines


def tables(found: Found) -> list[tuple[str, tuple[str, ...], list[list[str]]]]:
    """(title, columns, lines)"""
    judged, of = len(found["arms"][SEPARATE]["portfolios"]), sum(map(len, found["partition"]["groups"]))
    return [
        (f"{judged} of {of} portfolios, those with {fit.JUDGED} test rows or more", ARMS, by_arm(found)),
        ("AUC by portfolio", ("", *found["arms"]), by_portfolio(found)),
        (f"A training step of one network, {found['batch']} rows, CPU ms", *by_backend(found["timing"]["training"])),
        (f"Serving {found['batch']} rows of one domain, all tasks, CPU ms", *by_backend(found["timing"]["serving"])),
    ]


def show(found: Found, console: Console) -> None:
    shown = []
    for title, columns, lines in tables(found):
        made = Table(title=title)
        for column in columns:
            made.add_column(column, justify="right" if column else "left")
        for line in lines:
            made.add_row(*line)
        shown.append(made)
    console.print(Group(*shown))


def markdown(found: Found) -> str:
    """The same tables, with what was decided before."""
    kept, size = found["filter"]["kept"], found["sketch"]
    lines = ["# Lattice on " + found["problem"], ""]
    parts, teacher = found["partition"], found["teacher"]
    for i, (names, untied) in enumerate(zip(parts["names"], parts["untied"], strict=True)):
        lines.append(f"* group {i}: {', '.join(names)}; copies of untied weights by domain: {untied}")
    values = ", ".join(f"{name} {value}" for name, value in size["values"].items())
    known = reach(teacher) if teacher["file"] else f"none: {teacher['why']}"
    lines += [f"* features kept: {', '.join(kept)}"]
    lines += [f"* size: {values}; AUC {size['auc']:.4f} on held-out rows, the best of {size['tried']}"]
    lines += [f"* teacher: {known}"]
    if not teacher["file"]:
        lines += [f"* so {CONSOLIDATED} is {UNTIED}, trained once more"]
    lines += [f"* trained under {found['backend']}" + (": a rehearsal, no result" if found["quick"] else ""), ""]
    for title, columns, rows in tables(found):
        lines += [f"## {title}", "", "| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
        lines += ["| " + " | ".join(line) + " |" for line in rows] + [""]
    return "\n".join([*lines, "## Merges and splits", "", *(f"* {step}" for step in parts["explain"]), ""])


def reach(teacher: Found) -> str:
    """Of which rows a teacher knew something."""
    return (
        f"knew {teacher['learned']:.0%} of the rows that networks learn from and {teacher['tested']:.0%} of the test "
        f"rows; {teacher['hits']:.0%} of the second half of the ratings, it learned from the first itself"
    )


def plot(found: Found, path: Path) -> None:
    """AUC by portfolio and arm; beside it what each arm costs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    arms = found["arms"]
    names = list(arms[SEPARATE]["portfolios"])
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4), width_ratios=(3, 2))
    for place, (arm, of) in enumerate(arms.items()):
        at = [x + (place - len(arms) / 2) / (len(arms) + 1) for x in range(len(names))]
        left.plot(at, [of["portfolios"][name]["auc"] for name in names], "o", label=arm)
        right.plot(request_flops(of) / 1e3, fmean(each["auc"] for each in of["portfolios"].values()), "o", label=arm)
    left.set(ylabel="AUC", xticks=range(len(names)))
    left.set_xticklabels(names, rotation=20, ha="right", fontsize=8)
    right.set(xlabel="kFLOP a request, all tasks", ylabel="AUC, mean over portfolios")
    right.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
