"""The options of the commands."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from examples.exfm.das.lowered import HOW
from examples.exfm.learner import LESSONS
from examples.exfm.students import ARMS, STAGES
from examples.exfm.teacher import SIZES

DATA = ("movielens", "drift")
Command = Callable[[argparse.Namespace], None]


def parser_of(commands: Mapping[str, Command], description: str) -> argparse.ArgumentParser:
    """The parser; what it parses has the chosen command as `run`."""
    parser = argparse.ArgumentParser("python -m examples.exfm", description=description)
    each_one = parser.add_subparsers(dest="command", required=True)
    parts = {
        "run": (_data, _speed, _score, _students, _evaluate),
        "replay": (_data, _speed),
        "score": (_speed, _score),
        "train": (_students,),
        "evaluate": (_out, _evaluate),
    }
    for name, command in commands.items():
        each = each_one.add_parser(
            name,
            help=(command.__doc__ or "").rstrip(".").lower(),
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        each.add_argument("--work", type=Path, required=True, help="the folder that everything goes to")
        each.add_argument(
            "--seed", type=number(int, 0), help="of the log, the teacher and the students; 0 if not given"
        )
        for add in parts[name]:
            add(each)
        each.set_defaults(run=command)
    return parser


def _data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", choices=DATA, help="what the log is made of; movielens if there is none")
    parser.add_argument("--days", type=number(int, 1), help="only the first so many; of drift 7")
    parser.add_argument(
        "--history", type=number(int, 0), help="events of each user's past to log, for the teacher; 0 if there is none"
    )


def _speed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--speed", type=number(float, 0, above=True), help="seconds of the stream a second; None is at once"
    )


def _score(parser: argparse.ArgumentParser) -> None:
    hours, seconds = number(float, 0, above=True), number(float, 0)
    parser.add_argument("--size", choices=list(SIZES), default="small", help="of the teacher")
    parser.add_argument("--delay", type=seconds, default=0.0, help="days that the teacher in use lags")
    parser.add_argument("--late", action="store_true", help="score an example when its label has come, not before")
    parser.add_argument("--period", type=hours, default=24.0, help="hours between the teacher's snapshots")
    parser.add_argument("--lessons", choices=list(LESSONS), default="large", help="steps of the teacher")
    parser.add_argument(
        "--rehearse", type=number(int, 0), default=0, help="the teacher's steps on the past for each on new rows"
    )
    parser.add_argument("--how", choices=HOW, default="eager", help="the teacher runs; loka is under a plan")
    parser.add_argument("--batch", type=number(int, 1), default=512, help="examples scored together")
    parser.add_argument(
        "--actors", type=number(int, 0), default=0, help="Ray actors that score; 0 is this process alone"
    )
    parser.add_argument("--patience", type=seconds, help="seconds that a row waits for its score; None is for ever")


def _students(parser: argparse.ArgumentParser) -> None:
    _out(parser)
    parser.add_argument(
        "--students",
        nargs="+",
        type=_vertical_and_stage,
        metavar="VERTICAL:STAGE",
        help=f"who learns; stages are {', '.join(STAGES)}; None is those of the data, or one a vertical",
    )
    parser.add_argument("--more", action="store_true", help="rows will come later: do not learn the end yet")
    parser.add_argument("--arm", choices=ARMS, default="adapter", help="how students are taught")
    least = number(float, 0)
    parser.add_argument("--beta", type=least, default=1.0, help="the teacher's gradient into the trunk is scaled by it")
    parser.add_argument("--alpha", type=number(float, 0, above=True), default=1.0, help="soft labels are scaled by it")
    parser.add_argument("--weight", type=least, default=1.0, help="of the teacher's loss")


def _out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="where students go; None is the folder students in work")


def _evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--skip", type=number(int, 0), default=7, help="days at the start that are in no total: a teacher is new there"
    )


def number(kind: type[int] | type[float], least: float, above: bool = False) -> Callable[[str], int | float]:
    """What reads a number of at least so much, or above it."""

    def read(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {'whole ' * (kind is int)}number") from None
        if not (math.isfinite(value) and (value > least if above else value >= least)):
            raise argparse.ArgumentTypeError(f"expected {'more than' if above else 'at least'} {least}, got {text}")
        return value

    return read


def _vertical_and_stage(text: str) -> tuple[str, str]:
    vertical, _, stage = text.rpartition(":")
    if not vertical or stage not in STAGES:
        raise argparse.ArgumentTypeError(f"expected VERTICAL:STAGE, a stage of {', '.join(STAGES)}; got {text!r}")
    return vertical, stage
