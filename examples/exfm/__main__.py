"""python -m examples.exfm run | replay | score | train | evaluate: see README.md.

Each command goes on where it stopped: Ctrl-C it, or kill it, and start it again.
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
from typing import Any

from examples.exfm import evaluate as evaluation
from examples.exfm import score as scoring
from examples.exfm import train as training
from examples.exfm.das.lowered import HOW, Lowered
from examples.exfm.das.scorers import Local, Scorer, Scorers
from examples.exfm.das.service import Settings
from examples.exfm.errors import ExfmError
from examples.exfm.learner import LESSONS
from examples.exfm.stream import drift, log, movielens
from examples.exfm.stream.events import SCHEMA, Schema
from examples.exfm.stream.pace import pace
from examples.exfm.students import ARMS, StudentSpec
from examples.exfm.teacher import SIZES

HOUR = 3600
DAY = 24 * HOUR
STUDENTS = {
    "movielens": (("all", "late"), ("drama", "early"), ("action", "retrieval"), ("comedy", "late")),
    "drift": (("feed", "late"), ("stories", "early"), ("search", "retrieval")),
}
"""Vertical and stage of the students, by data."""


def main(argv: list[str] | None = None) -> int:
    """Runs one command; 2 with a message for what cannot be done."""
    options = _parser().parse_args(argv)
    try:
        options.run(options)
    except (ExfmError, FileNotFoundError) as error:
        print(f"exfm {options.command}: {error}", file=sys.stderr)
        return 2
    return 0


def replay(options: argparse.Namespace) -> None:
    """Write the log if there is none, and play it at a speed if one is given."""
    folder = options.work / "log"
    if not (folder / SCHEMA).exists():
        if options.data == "movielens":
            count = movielens.record(folder, seed=options.seed, days=options.days, history=options.history)
        else:
            source = drift.Drift(hours=24 * (options.days or 7), seed=options.seed, history=options.history)
            count = log.write(folder, source.schema, source.events())
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
        period=round(options.period * HOUR),
        keep=keep,
        seed=options.seed,
        speed=options.speed,
        lessons=replace(LESSONS[options.lessons], replay=options.replay),
    )
    say = _Saying()
    counters = scoring.score(
        source,
        plan,
        partial(_scorers, options),
        lambda at: say(lambda: f"score: {_date(at.now)}, {at.rows:,} rows in {at.chunks:,} chunks"),
    )
    print(f"scored: {counters['rows']:,} rows of {counters['examples']:,} examples")
    for name, count in sorted(counters.counts.items()):
        print(f"  {name:24} {count:12,}")


def train(options: argparse.Namespace) -> None:
    """The students, from joined rows to predictions."""
    say = _Saying()
    training.train(
        options.work,
        Schema.load(options.work / "log"),
        students_of(options),
        _out(options),
        each=lambda at: say(lambda: f"train: {at.rows:,} rows"),
    )


def evaluate(options: argparse.Namespace) -> None:
    """Results, on the screen, as JSON and as a picture."""
    schema = Schema.load(options.work / "log")
    out = _out(options)
    results = evaluation.evaluate(options.work, schema, out, options.skip, SIZES[options.size])
    print(f"{'':24} {'rows':>9} {'NE':>8} {'AUC':>8} {'calibration':>12} {'MFLOP':>8}")
    lines = {name: (of["total"], of["flops_forward"]) for name, of in results["students"].items()}
    lines["teacher"] = (results["teacher"]["total"], results["teacher"]["cost"]["flops_forward"])
    for name, (of, flops) in lines.items():
        ne, auc, calibration = (
            f"{of[each]:.4f}" if of[each] is not None else "-" for each in ("ne", "auc", "calibration")
        )
        print(f"{name:24} {of['rows']:9,} {ne:>8} {auc:>8} {calibration:>12} {flops / 1e6:8.3f}")
    calls = results["teacher"]["cost"]["calls_per_example"]
    print(f"the teacher's calls per unique example: {'-' if calls is None else f'{calls:.4f}'}")
    print(f"{out / evaluation.RESULTS}, {out / evaluation.PLOT}")


def run(options: argparse.Namespace) -> None:
    """All four."""
    for command in (replay, score, train, evaluate):
        command(options)


def students_of(options: argparse.Namespace) -> tuple[StudentSpec, ...]:
    """One a vertical that the data have, all taught alike."""
    names = Schema.load(options.work / "log").verticals
    [chosen] = [each for each in STUDENTS.values() if {vertical for vertical, _ in each} <= set(names)] or [None]
    if chosen is None:
        raise ExfmError(f"the log's verticals are {', '.join(names)}: there are students for {list(STUDENTS)} alone")
    taught = {"arm": options.arm, "beta": options.beta, "alpha": options.alpha, "weight": options.weight}
    return tuple(StudentSpec(f"{v}-{stage}", v, stage, seed=options.seed, **taught) for v, stage in chosen)


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m examples.exfm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    parts: dict[Callable[[argparse.Namespace], None], tuple[Callable[[Any], None], ...]] = {
        run: (_data, _score, _train, _evaluate),
        replay: (_data,),
        score: (_score,),
        train: (_train,),
        evaluate: (_evaluate,),
    }
    for command, adders in parts.items():
        each = commands.add_parser(command.__name__, help=(command.__doc__ or "").rstrip(".").lower())
        each.add_argument("--work", type=Path, required=True, help="the folder that everything goes to")
        each.add_argument("--seed", type=int, default=0)
        if command in (run, train, evaluate):
            each.add_argument("--out", type=Path, help="where students go; work/students by default")
        if command in (run, score, evaluate):
            each.add_argument("--size", choices=list(SIZES), default="small", help="of the teacher")
        if command in (run, replay, score):
            each.add_argument(
                "--speed", type=float, help="seconds of the stream a second; as fast as it goes by default"
            )
        for add in adders:
            add(each)
        each.set_defaults(run=command)
    return parser


def _data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", choices=list(STUDENTS), default="movielens")
    parser.add_argument("--days", type=int, help="only the first so many")
    parser.add_argument("--history", type=int, default=0, help="events of each user's past to log, for the teacher")


def _score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--delay", type=float, default=0.0, help="days that the teacher in use lags")
    parser.add_argument("--late", action="store_true", help="score an example when its label has come, not before")
    parser.add_argument("--period", type=float, default=24.0, help="hours between the teacher's snapshots")
    parser.add_argument("--lessons", choices=list(LESSONS), default="large", help="steps of the teacher")
    parser.add_argument("--replay", type=int, default=0, help="the teacher's steps on the past for each on new rows")
    parser.add_argument("--how", choices=HOW, default="eager", help="the teacher runs: loka is under a plan")
    parser.add_argument("--batch", type=int, default=512, help="examples scored together")
    parser.add_argument("--actors", type=int, default=0, help="Ray actors that score; 0 for this process")
    parser.add_argument("--patience", type=float, help="seconds that a row waits for its score; forever by default")


def _train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arm", choices=ARMS, default="adapter")
    for name in ("beta", "alpha", "weight"):
        parser.add_argument(f"--{name}", type=float, default=1.0, help="of the Auxiliary Head")


def _evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--skip", type=int, default=7, help="days at the start that count for no total")


if __name__ == "__main__":
    sys.exit(main())
