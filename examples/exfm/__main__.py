"""python -m examples.exfm run | replay | score | train | evaluate: see README.md.

Each command goes on where it stopped: Ctrl-C it, or kill it, and start it again with the same options.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from examples.exfm import evaluate as evaluation
from examples.exfm import score as scoring
from examples.exfm import train as training
from examples.exfm.das.lowered import Lowered
from examples.exfm.das.scorers import Local, Scorer, Scorers
from examples.exfm.das.service import Settings
from examples.exfm.errors import ExfmError
from examples.exfm.learner import LESSONS
from examples.exfm.options import parser_of
from examples.exfm.stream import log
from examples.exfm.stream.events import Schema
from examples.exfm.stream.origin import record
from examples.exfm.stream.pace import pace
from examples.exfm.students import StudentSpec
from examples.exfm.teacher import SIZES

HOUR = 3600
DAY = 24 * HOUR
STUDENTS = (
    (("all", "late"), ("drama", "early"), ("action", "retrieval"), ("comedy", "late")),
    (("feed", "late"), ("stories", "early"), ("search", "retrieval")),
)
"""Vertical and stage of the students: of MovieLens, of the stream that drifts."""
SHOWN = 5
"""Faults shown in words; score.json has more."""
STOPPED = 130
"""What a shell expects of a command that Ctrl-C ended."""


def main(argv: list[str] | None = None) -> int:
    """Runs one command; 2 with a message for what cannot be done."""
    commands = {each.__name__: each for each in (run, replay, score, train, evaluate)}
    options = parser_of(commands, __doc__ or "").parse_args(argv)
    try:
        options.run(options)
    except (ExfmError, FileNotFoundError) as error:
        print(f"exfm {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"exfm {options.command}: stopped; the same command goes on", file=sys.stderr)
        return STOPPED
    return 0


def replay(options: argparse.Namespace) -> None:
    """Write the log if there is none, and play it at a speed if one is given."""
    folder = options.work / "log"
    if count := record(folder, options.data, options.days, options.history, options.seed):
        print(f"{folder}: {count:,} events")
    if options.command == "replay" and options.speed:
        say = _Saying()
        for events, _ in pace(log.Log(folder).chunks(), options.speed):
            say(lambda events=events: f"{_date(int(events.logged[-1]))}: {len(events):,} events")


def score(options: argparse.Namespace) -> None:
    """DAS and the teacher, from the log to joined rows."""
    source = log.Log(options.work / "log")
    size = SIZES[options.size]
    settings = Settings(
        delay=round(options.delay * DAY), late=options.late, patience=options.patience, batch=options.batch
    )
    keep = 2 + round(options.delay * DAY / (options.period * HOUR))
    plan = scoring.Plan(
        options.work,
        size,
        settings,
        period=max(round(options.period * HOUR), 1),
        keep=keep,
        seed=options.seed or 0,
        speed=options.speed,
        lessons=replace(LESSONS[options.lessons], replay=options.rehearse),
        how=options.how,
    )
    say = _Saying()
    counters = scoring.score(
        source,
        plan,
        partial(_scorers, options),
        lambda at: say(lambda: f"score: {_date(at.now)}, {at.rows:,} rows in {at.chunks:,} chunks"),
    )
    print(f"scored: {counters['rows']:,} rows of {counters['examples']:,} examples")
    for name, count in sorted((source.counters.counts + counters.counts).items()):
        print(f"  {name:24} {count:12,}")
    named = [*source.counters.named, *counters.named]
    for words in named[-SHOWN:]:
        print(f"  {words}")
    if len(named) > SHOWN:
        print(f"  and {len(named) - SHOWN} more in {options.work / scoring.REPORT}")


def train(options: argparse.Namespace) -> None:
    """The students, from joined rows to predictions."""
    say = _Saying()
    training.train(
        options.work,
        Schema.load(options.work / "log"),
        students_of(options),
        _out(options),
        last=False if options.more else None,
        each=lambda at: say(lambda: f"train: {at.rows:,} rows"),
    )


def evaluate(options: argparse.Namespace) -> None:
    """Results, on the screen, as JSON and as a picture."""
    schema = Schema.load(options.work / "log")
    out = _out(options)
    results = evaluation.evaluate(options.work, schema, out, options.skip)
    print(f"{'':24} {'rows':>9} {'NE':>8} {'AUC':>8} {'calibration':>12} {'MFLOP':>8}")
    lines = {name: (of["total"], of["flops_forward"]) for name, of in results["students"].items()}
    cost = results["teacher"]["cost"]
    lines["teacher"] = (results["teacher"]["total"], cost["flops_forward"])
    for name, (of, flops) in lines.items():
        ne, auc, calibration = (
            f"{of[each]:.4f}" if of[each] is not None else "-" for each in ("ne", "auc", "calibration")
        )
        print(f"{name:24} {of['rows']:9,} {ne:>8} {auc:>8} {calibration:>12} {flops / 1e6:8.3f}")
    if not any(of["rows"] for of, _ in lines.values()):
        print(f"no row is later than the first {options.skip} days: give a smaller --skip", file=sys.stderr)
    for name, (of, _) in lines.items():
        if of["not_finite"]:
            print(f"{name}: {of['not_finite']:,} predictions are no numbers", file=sys.stderr)
    for words in results["faults"]["named"][-SHOWN:]:
        print(f"  {words}", file=sys.stderr)
    calls = "-" if cost["calls_per_example"] is None else f"{cost['calls_per_example']:.4f}"
    words = f"{cost['calls']:,} for {cost['sent']:,} that a snapshot was there for, of {cost['examples']:,} examples"
    print(f"the teacher's calls per unique example: {calls} ({words})")
    print(f"{out / evaluation.RESULTS}, {out / evaluation.PLOT}")


def run(options: argparse.Namespace) -> None:
    """All four."""
    for command in (replay, score, train, evaluate):
        command(options)


def students_of(options: argparse.Namespace) -> tuple[StudentSpec, ...]:
    """Those asked for, those of the data, or one for late ranking a vertical; all taught alike."""
    names = Schema.load(options.work / "log").verticals
    known = [each for each in STUDENTS if {vertical for vertical, _ in each} <= set(names)]
    chosen = options.students or (known[0] if known else [(name, "late") for name in names])
    taught = {"arm": options.arm, "beta": options.beta, "alpha": options.alpha, "weight": options.weight}
    return tuple(StudentSpec(f"{v}-{stage}", v, stage, seed=options.seed or 0, **taught) for v, stage in chosen)


def _scorers(options: argparse.Namespace, folder: Path) -> Scorers:
    """In this process, or Ray's actors."""
    prepare = None if options.how == "eager" else Lowered(options.how, options.batch)
    if not options.actors:
        return Local(Scorer(folder, prepare))
    import ray

    from examples.exfm.das.ray_scorers import OnRay

    ray.init(include_dashboard=False, log_to_driver=False)
    return OnRay(folder, options.actors, prepare=prepare)


def _out(options: argparse.Namespace) -> Path:
    return options.out or options.work / "students"


class _Saying:
    """A line at most every two seconds."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def __call__(self, words: Callable[[], str]) -> None:
        if time.monotonic() - self.last >= 2:
            print(words(), file=sys.stderr, flush=True)
            self.last = time.monotonic()


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


if __name__ == "__main__":
    sys.exit(main())
