"""How well students do, day by day: NE, AUC, calibration; what the teacher cost and how fresh its scores were."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from examples.exfm import files
from examples.exfm.counters import Counters
from examples.exfm.das.rows import Rows
from examples.exfm.errors import ExfmError
from examples.exfm.parts import Parts
from examples.exfm.score import REPORT as SCORE_REPORT
from examples.exfm.score import rows_of
from examples.exfm.stream.events import Schema
from examples.exfm.students import StudentSpec
from examples.exfm.tally import Daily
from examples.exfm.teacher import Teacher, size_of
from examples.exfm.train import REPORT as TRAIN_REPORT
from examples.exfm.train import predictions_of

RESULTS, PLOT = "results.json", "ne.png"
COUNTED = 64
"""Rows that FLOPs are counted on."""
OLDEST = 24 * 100
"""Hours: a teacher that was older counts as this old."""


def evaluate(work: Path, schema: Schema, out: Path | None = None, skip: int = 0) -> dict:
    """Everything to `results.json`, and a picture of NE by day. skip: days at the start that count for no total."""
    out = out or work / "students"
    if not (out / TRAIN_REPORT).exists():
        raise ExfmError(f"{out} holds no students: run `train` first")
    if not (work / SCORE_REPORT).exists():
        raise ExfmError(f"{work} has no {SCORE_REPORT}: run `score` to its end first")
    trained = json.loads((out / TRAIN_REPORT).read_text(encoding="utf-8"))
    scored = json.loads((work / SCORE_REPORT).read_text(encoding="utf-8"))
    if "size" not in scored:
        raise ExfmError(f"{work / SCORE_REPORT} is of an older version: run `score` again, which finds all done")
    faults, start = Counters(), began(work)
    students = {
        name: {
            **of,
            "vertical": trained["students"][name]["vertical"],
            "arm": trained["students"][name]["arm"],
            "seconds": trained["students"][name]["seconds"],
            "flops_forward": flops(StudentSpec(**_spec(trained["students"][name])).build(schema)[0], schema),
        }
        for name, of in by_student(out, start, skip, faults).items()
    }
    results = {
        "students": students,
        "teacher": {**teacher(work, schema, start, skip, faults), "cost": cost(scored, schema)},
        "stream": scored,
        "faults": {"counters": dict(faults.counts), "named": list(faults.named)},
    }
    files.write_json(out / RESULTS, results)
    plot(results, out / PLOT)
    return results


def began(work: Path) -> int:
    """When the first example of all was shown: day 0 of everybody, whoever predicted or scored what."""
    times = (table["time"] for _, table in Parts(work / "rows").tables(counters=Counters(), columns=["time"]))
    return min((pc.min(each).as_py() for each in times if len(each)), default=0)


def by_student(out: Path, start: int, skip: int = 0, faults: Counters | None = None) -> dict[str, dict[str, Any]]:
    """Total and by day, counted from that of `start`, of each student's predictions. faults: counts parts that cannot
    be read; None: they raise."""
    found: dict[str, Daily] = {}
    for name, time, logit, label in _predicted(out, faults):
        found.setdefault(name, Daily(start, skip)).add(time, logit, label)
    return {
        name: {"total": asdict(of.total()), "days": {day: asdict(each) for day, each in of.by_day().items()}}
        for name, of in found.items()
    }


def _predicted(out: Path, faults: Counters | None) -> Iterator[tuple[str, NDArray[Any], NDArray[Any], NDArray[Any]]]:
    """A student's name, and time, logit and label of some of its predictions."""
    for table in predictions_of(out, faults):
        names = table["student"].combine_chunks()
        for name in pc.unique(names).to_pylist():
            own = table.filter(pc.equal(names, name))
            yield name, *(own[column].to_numpy() for column in ("time", "logit", "label"))


def teacher(work: Path, schema: Schema, start: int, skip: int = 0, faults: Counters | None = None) -> dict[str, Any]:
    """The scores' own quality, over all traffic and by vertical, and how old the teacher was that gave them. Days count
    from that of `start`, however late the first score was given."""
    whole, verticals = Daily(start, skip), {name: Daily(start, skip) for name in schema.verticals}
    hours = np.zeros(OLDEST, np.int64)
    for rows in _scored(work, faults):
        first = rows.take(rows.first)
        whole.add(first.time, first.logit, first.label)
        for number, of in enumerate(verticals.values()):
            own = rows.of(number)
            of.add(own.time, own.logit, own.label)
        hours += np.bincount(np.clip((first.scored_at - first.trained_until) // 3600, 0, OLDEST - 1), minlength=OLDEST)
    below = hours.cumsum()
    return {
        "total": asdict(whole.total()),
        "verticals": {name: asdict(total) for name, of in verticals.items() if (total := of.total()).rows},
        "freshness_hours": {
            f"p{p}": float(np.searchsorted(below, p / 100 * below[-1])) if below[-1] else None for p in (5, 50, 95)
        },
    }


def _scored(work: Path, faults: Counters | None) -> Iterator[Rows]:
    for _, rows in rows_of(work, counters=faults):
        if rows.scored.any():
            yield rows.take(rows.scored)


def cost(scored: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """Calls per unique example that was sent to be scored, how many those are of all, and FLOPs of a call."""
    counts = scored["counters"]
    sent = counts.get("sent", 0)
    return {
        "examples": counts.get("examples", 0),
        "sent": sent,
        "calls": counts.get("teacher_calls", 0),
        "calls_per_example": counts.get("teacher_calls", 0) / sent if sent else None,
        "flops_forward": flops(Teacher(schema, size_of(scored["size"])), schema),
        "parameters": scored["teacher_parameters"],
    }


def flops(model: torch.nn.Module, schema: Schema) -> float:
    """Of one row's forward pass, counted on COUNTED rows."""
    ids = torch.zeros(COUNTED, len(schema.fields), dtype=torch.long)
    bag = torch.zeros(COUNTED, schema.places if isinstance(model, Teacher) else schema.most, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(ids, bag)
    return counter.get_total_flops() / COUNTED


def plot(results: Mapping[str, Any], path: Path) -> None:
    """NE by day of each student, lines of a vertical in one panel."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    verticals = list(dict.fromkeys(of["vertical"] for of in results["students"].values()))
    count = max(len(verticals), 1)
    figure, panels = pyplot.subplots(count, 1, figsize=(9, 3 * count), squeeze=False, sharex=True)
    for panel, vertical in zip(panels[:, 0], verticals, strict=False):
        for name, of in results["students"].items():
            if of["vertical"] == vertical:
                panel.plot(*zip(*smooth(of["days"]), strict=True), label=name)
        panel.set_title(vertical)
        panel.set_ylabel("NE, mean of 7 days")
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
