"""Which way of teaching is better, over seeds, and what the teacher's delay and the dials do.

    python -m examples.exfm.bench_arms --work FOLDER [--data movielens] [--seeds 5] [--delays 0 1 2 4] [--json FILE]
        [--betas 1] [--alphas 1] [--weights 1] [--days 60] [--history 32] [--period 6] [--late] [--quick]

NE is progressive, over all rows from day `--skip` on. Students differ from each other in how they are taught alone.
The teacher is trained once, from one seed, and for each delay what it would have said is said again; students' seeds
differ. Everything is kept in the folder: a run that is stopped goes on.

What the teacher knows more than students do: `--history` events of the user's past, `--rehearse` steps on the past for
each on new rows, and, with `--late`, what comes before the label does.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from examples.exfm.arms import as_json, compare, grid, markdown, orders, plot
from examples.exfm.das.service import Settings
from examples.exfm.errors import in_one_line
from examples.exfm.evaluate import began, teacher
from examples.exfm.learner import LESSONS
from examples.exfm.rescore import rescore
from examples.exfm.score import Plan, Progress, score
from examples.exfm.stream import drift, log
from examples.exfm.stream.origin import once, record
from examples.exfm.students import ARMS, StudentSpec
from examples.exfm.teacher import SIZES

HOUR = 3600
DAY = 24 * HOUR
PLOT = "arms.png"
SURE = 2.0
"""Standard errors from 0 at which an order is said to hold, or not to."""
TEACHER = ("size", "history", "period", "lessons", "rehearse", "late")
"""Options that say what the teacher is."""
STUDENTS = {
    "movielens": (
        StudentSpec("drama", "drama", "early"),
        StudentSpec("action", "action", "retrieval"),
        StudentSpec("comedy", "comedy", "late"),
    ),
    "drift": (
        StudentSpec("feed", "feed", "late"),
        StudentSpec("stories", "stories", "early"),
        StudentSpec("search", "search", "retrieval"),
    ),
}


def main(argv: list[str] | None = None) -> dict[str, object]:
    options = parse(argv)
    folder = options.work / "log"
    if options.data == "movielens":
        record(folder, "movielens", options.days, options.history, 0)
    else:
        stream = drift.Drift(hours=36 if options.quick else 24 * (options.days or 42), history=options.history)
        stream = stream if options.quick else replace(stream, users=2000, items=500)
        asked = {"data": "drift", "hours": stream.hours, "history": stream.history}
        once(folder, asked, lambda: log.write(folder, stream.schema, stream.events()))
    source = log.Log(folder)
    taught = options.work / "taught"
    plan = Plan(
        taught,
        SIZES[options.size],
        Settings(late=options.late),
        period=round(options.period * HOUR),
        keep=10**6,
        lessons=replace(LESSONS[options.lessons], replay=options.rehearse),
    )
    score(source, plan, each=said_so)
    works = {delay: taught if not delay else options.work / f"delay-{delay:g}" for delay in options.delays}
    for delay, work in works.items():
        if delay:
            rescore(taught, work, round(delay * DAY))
    cells = grid(options.arms, options.delays, options.betas, options.alphas, options.weights)
    students = [
        each for each in STUDENTS[options.data] if each.vertical in (options.verticals or source.schema.verticals)
    ]
    found = compare(works, source.schema, students, cells, range(options.seeds), options.skip)
    knows = {delay: teacher(work, source.schema, began(work), options.skip) for delay, work in works.items()}
    for delay, of in knows.items():
        nes = ", ".join(f"{name} {each['ne']:.4f}" for name, each in of.get("verticals", {}).items() if each["ne"])
        print(f"the teacher's scores, delay {delay:g} d: NE {nes}")
    print(markdown(found))
    said = {vertical: {f"{d:g}": orders(of, d, list(of)) for d in options.delays} for vertical, of in found.items()}
    for vertical, by_delay in said.items():
        for delay, each in by_delay.items():
            for words, holds, change in each:
                verdict = ("yes" if holds else "NO") if change.sure >= SURE else "not sure"
                print(
                    f"{vertical}, delay {delay} d: {words}: {verdict}, {change.mean:+.3%} ± "
                    f"{change.error:.3%} of NE over {change.seeds} seeds"
                )
    results: dict[str, object] = {
        "data": options.data,
        "teacher": {name: getattr(options, name) for name in TEACHER},
        "scores": {f"{delay:g}": of for delay, of in knows.items()},
        "skip": options.skip,
        "cells": as_json(found),
        "orders": [
            {"vertical": v, "delay": d, "what": words, "holds": holds, "mean": change.mean, "error": change.error}
            for v, by_delay in said.items()
            for d, each in by_delay.items()
            for words, holds, change in each
        ],
    }
    plot(found, options.work / PLOT)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def said_so(at: Progress) -> None:
    """A line every 100 chunks."""
    if at.chunks % 100 == 0:
        print(f"  {at.rows:,} rows scored", file=sys.stderr, flush=True)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", choices=list(STUDENTS), default="movielens")
    parser.add_argument("--size", choices=list(SIZES), default="small", help="of the teacher")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--verticals", nargs="+", help="these alone")
    parser.add_argument("--delays", nargs="+", type=float, default=[0.0, 1.0, 2.0, 4.0], help="of the teacher, in days")
    for name in ("betas", "alphas", "weights"):
        parser.add_argument(f"--{name}", nargs="+", type=float, default=[1.0])
    parser.add_argument("--days", type=int, help="only the first so many of the stream")
    parser.add_argument("--history", type=int, default=0, help="events of a user's past that the teacher reads")
    parser.add_argument("--period", type=float, default=24.0, help="hours between the teacher's snapshots")
    parser.add_argument("--lessons", choices=list(LESSONS), default="large", help="steps of the teacher")
    parser.add_argument("--rehearse", type=int, default=0, help="the teacher's steps on the past for each on new rows")
    parser.add_argument("--late", action="store_true", help="score an example when its label has come, not before")
    parser.add_argument("--skip", type=int, default=14, help="days at the start that do not count")
    parser.add_argument("--quick", action="store_true", help="a tiny stream and teacher: a rehearsal, no result")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    options = parser.parse_args(argv)
    if options.quick:
        options.data, options.size, options.skip, options.seeds = "drift", "tiny", 0, 2
        options.delays = options.delays[:2]
    return options


if __name__ == "__main__":
    in_one_line("bench_arms", main)
