"""How well students do, day by day: NE, AUC, calibration; what the teacher cost and how fresh its scores were."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from examples.exfm import files
from examples.exfm.das.rows import Rows
from examples.exfm.errors import ExfmError
from examples.exfm.score import REPORT as SCORE_REPORT
from examples.exfm.score import rows_of
from examples.exfm.stream.events import Schema
from examples.exfm.students import StudentSpec
from examples.exfm.teacher import Teacher, TeacherSize
from examples.exfm.train import REPORT as TRAIN_REPORT
from examples.exfm.train import predictions_of
from examples.metrics import auc, normalized_entropy

DAY = 24 * 3600
RESULTS, PLOT = "results.json", "ne.png"
COUNTED = 64
"""Rows that FLOPs are counted on."""


@dataclass(frozen=True)
class Quality:
    """rows; rate: of positives; ne, auc: None where one of the two labels is missing; calibration: mean prediction over
    mean label."""

    rows: int
    rate: float
    ne: float | None
    auc: float | None
    calibration: float | None


def quality(logit: NDArray[Any], label: NDArray[Any]) -> Quality:
    rate = float(label.mean()) if len(label) else 0.0
    mean = float((1 / (1 + np.exp(-logit.astype(np.float64)))).mean()) if len(label) else 0.0
    both = 0 < rate < 1
    logits, labels = torch.from_numpy(logit), torch.from_numpy(label)
    return Quality(
        len(label),
        rate,
        normalized_entropy(logits, labels) if both else None,
        auc(logits, labels) if both else None,
        mean / rate if rate else None,
    )


def evaluate(
    work: Path, schema: Schema, out: Path | None = None, skip: int = 0, size: TeacherSize | None = None
) -> dict:
    """Everything to `results.json`, and a picture of NE by day. skip: days at the start that count for no total."""
    out = out or work / "students"
    if not (out / TRAIN_REPORT).exists():
        raise ExfmError(f"{out} holds no students: run `train` first")
    trained = json.loads((out / TRAIN_REPORT).read_text(encoding="utf-8"))
    scored = json.loads((work / SCORE_REPORT).read_text(encoding="utf-8"))
    students = {
        name: {
            **of,
            "vertical": trained["students"][name]["vertical"],
            "arm": trained["students"][name]["arm"],
            "seconds": trained["students"][name]["seconds"],
            "flops_forward": flops(StudentSpec(**_spec(trained["students"][name])).build(schema)[0], schema),
        }
        for name, of in by_student(out, skip).items()
    }
    results = {
        "students": students,
        "teacher": {**teacher(work, schema, skip), "cost": cost(scored, schema, size)},
        "stream": scored,
    }
    files.write(out / RESULTS, json.dumps(results, indent=1).encode() + b"\n")
    plot(results, out / PLOT)
    return results


def by_student(out: Path, skip: int = 0) -> dict[str, dict[str, Any]]:
    """Total and by day, of each student's predictions."""
    columns: dict[str, list[tuple[NDArray[Any], ...]]] = {}
    for table in predictions_of(out):
        names = np.asarray(table["student"].to_pylist())
        values = [table[name].to_numpy() for name in ("time", "logit", "label")]
        for name in dict.fromkeys(names.tolist()):
            columns.setdefault(name, []).append(tuple(value[names == name] for value in values))
    return {
        name: days(*(np.concatenate(each) for each in zip(*parts, strict=True)), skip)
        for name, parts in columns.items()
    }


def days(time: NDArray[Any], logit: NDArray[Any], label: NDArray[Any], skip: int = 0) -> dict[str, Any]:
    """Qualities: of all rows, and of the rows of each day, counted from the first."""
    day = (time - time.min()) // DAY
    kept = day >= skip
    found = {int(d): asdict(quality(logit[day == d], label[day == d])) for d in np.unique(day)}
    return {"total": asdict(quality(logit[kept], label[kept])), "days": found}


def teacher(work: Path, schema: Schema, skip: int = 0) -> dict[str, Any]:
    """The scores' own quality, over all traffic and by vertical, and how old the teacher was that gave them."""
    parts: list[Rows] = [rows.take(rows.scored) for _, rows in rows_of(work)]
    columns = ("time", "logit", "label", "verticals", "first", "trained_until")
    time, logit, label, verticals, first, until = (np.concatenate([getattr(p, c) for p in parts]) for c in columns)
    if not len(time):
        return {"total": asdict(quality(logit, label))}
    kept = first & ((time - time.min()) // DAY >= skip)
    age = (time - until)[first] / 3600
    return {
        "total": asdict(quality(logit[kept], label[kept])),
        "verticals": {
            name: asdict(quality(logit[rows], label[rows]))
            for v, name in enumerate(schema.verticals)
            if (rows := (verticals >> v & 1 == 1) & ((time - time.min()) // DAY >= skip)).any()
        },
        "freshness_hours": {f"p{p}": float(np.percentile(age, p)) for p in (5, 50, 95)},
    }


def cost(scored: Mapping[str, Any], schema: Schema, size: TeacherSize | None) -> dict[str, Any]:
    """Calls per unique example that was sent to be scored, and FLOPs of a call."""
    counts = scored["counters"]
    sent = counts.get("sent", 0)
    return {
        "calls": counts.get("teacher_calls", 0),
        "calls_per_example": counts.get("teacher_calls", 0) / sent if sent else None,
        "flops_forward": flops(Teacher(schema, size), schema) if size else None,
        "parameters": scored["teacher_parameters"],
    }


def flops(model: torch.nn.Module, schema: Schema) -> float:
    """Of one row's forward pass, counted on COUNTED rows."""
    ids = torch.zeros(COUNTED, len(schema.fields), dtype=torch.long)
    bag = torch.zeros(COUNTED, schema.most, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(ids, bag)
    return counter.get_total_flops() / COUNTED


def plot(results: Mapping[str, Any], path: Path) -> None:
    """NE by day of each student, lines of a vertical in one panel."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    verticals = list(dict.fromkeys(of["vertical"] for of in results["students"].values()))
    figure, panels = pyplot.subplots(len(verticals), 1, figsize=(9, 3 * len(verticals)), squeeze=False, sharex=True)
    for panel, vertical in zip(panels[:, 0], verticals, strict=True):
        for name, of in results["students"].items():
            if of["vertical"] == vertical:
                panel.plot(*zip(*smooth(of["days"]), strict=True), label=name)
        panel.set_title(vertical)
        panel.set_ylabel("NE")
        panel.legend(fontsize="small")
    panels[-1, 0].set_xlabel("day")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


def smooth(of: Mapping[Any, Mapping[str, Any]], week: int = 7) -> Iterator[tuple[int, float]]:
    """(day, mean NE of the days of the week before, by rows)."""
    known = [(int(day), each["rows"], each["ne"]) for day, each in of.items() if each["ne"] is not None]
    for day, _, _ in known:
        rows, weighted = zip(*((n, n * ne) for d, n, ne in known if day - week < d <= day), strict=True)
        yield day, sum(weighted) / sum(rows)


def _spec(said: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in said.items() if name in StudentSpec.__dataclass_fields__}
