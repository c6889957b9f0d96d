"""Which way of teaching is better, over seeds, and what the teacher's delay and the dials do.

    python -m examples.exfm.bench_arms --work FOLDER [--data movielens] [--seeds 5] [--delays 0 1 2 4] [--json FILE]
        [--betas 1] [--alphas 1] [--weights 1] [--quick]

NE is progressive, over all rows from day `--skip` on. Students differ from each other in how they are taught alone.
The teacher is trained once for each delay, from one seed; students' seeds differ. Everything is kept in the folder: a
run that is stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from examples.exfm.arms import as_json, compare, grid, markdown, orders
from examples.exfm.das.service import Settings
from examples.exfm.score import Plan, Progress, score
from examples.exfm.stream import drift, log, movielens
from examples.exfm.stream.events import SCHEMA
from examples.exfm.students import ARMS, StudentSpec
from examples.exfm.teacher import SIZES

DAY = 24 * 3600
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
    if not (folder / SCHEMA).exists():
        if options.data == "movielens":
            movielens.record(folder)
        else:
            stream = drift.Drift(hours=36) if options.quick else drift.Drift(hours=24 * 42, users=2000, items=500)
            log.write(folder, stream.schema, stream.events())
    source = log.Log(folder)
    works = {}
    for delay in options.delays:
        works[delay] = options.work / f"delay-{delay:g}"
        settings = Settings(delay=round(delay * DAY))
        say = Saying(delay)
        score(source, Plan(works[delay], SIZES[options.size], settings, keep=2 + round(delay)), each=say)
    cells = grid(options.arms, options.delays, options.betas, options.alphas, options.weights)
    students = [
        each for each in STUDENTS[options.data] if each.vertical in (options.verticals or source.schema.verticals)
    ]
    found = compare(works, source.schema, students, cells, range(options.seeds), options.skip)
    print(markdown(found))
    said = {vertical: {f"{d:g}": orders(of, d, list(of)) for d in options.delays} for vertical, of in found.items()}
    for vertical, by_delay in said.items():
        for delay, each in by_delay.items():
            for words, holds, change in each:
                print(
                    f"{vertical}, delay {delay} d: {words}: {'yes' if holds else 'NO'}, {change.mean:+.3%} ± "
                    f"{change.error:.3%} of NE over {change.seeds} seeds"
                )
    results: dict[str, object] = {
        "data": options.data,
        "teacher": options.size,
        "skip": options.skip,
        "cells": as_json(found),
        "orders": [
            {"vertical": v, "delay": d, "what": words, "holds": holds, "mean": change.mean, "error": change.error}
            for v, by_delay in said.items()
            for d, each in by_delay.items()
            for words, holds, change in each
        ],
    }
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


class Saying:
    """A line every 100 chunks."""

    def __init__(self, delay: float) -> None:
        self.delay = delay

    def __call__(self, at: Progress) -> None:
        if at.chunks % 100 == 0:
            print(f"  delay {self.delay:g} d: {at.rows:,} rows", file=sys.stderr, flush=True)


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
    parser.add_argument("--skip", type=int, default=14, help="days at the start that do not count")
    parser.add_argument("--quick", action="store_true", help="a tiny stream and teacher: a rehearsal, no result")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    options = parser.parse_args(argv)
    if options.quick:
        options.data, options.size, options.skip, options.seeds = "drift", "tiny", 0, 2
        options.delays = options.delays[:2]
    return options


if __name__ == "__main__":
    main()
