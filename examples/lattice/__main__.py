"""Lattice as a whole: few consolidated models in place of one for each domain and objective.

    python -m examples.lattice run --data movielens [--out FOLDER] [--backend eager|inductor|loka]

Partitions the portfolios, filters features, sketches a size, asks a teacher, trains separate and merged networks, and
compares quality, FLOPs, parameters and serving cost. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from examples.lattice.data import DataError
from examples.lattice.kept import at_least_one
from examples.lattice.pipeline import run
from examples.lattice.pipeline.arms import BACKENDS
from examples.lattice.sketch.search import NothingFits
from examples.lattice.sketch.sharding import ShardingError


def main(argv: list[str] | None = None) -> dict[str, object]:
    return run.main(parse(argv))


def shell(argv: list[str] | None = None) -> int:
    """The command with its errors in one line; gives the exit status. Errors are what input, files and packages that
    are not there can cause; anything else is a fault of the program and shows where."""
    try:
        main(argv)
    except KeyboardInterrupt:
        print("stopped: the same command goes on from here", file=sys.stderr)
        return 130
    except (DataError, NothingFits, ShardingError, OSError, ImportError) as error:
        print(f"error: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2
    return 0


def more_than_zero(text: str) -> float:
    if not float(text) > 0:
        raise argparse.ArgumentTypeError(f"expected more than 0, got {text}")
    return float(text)


def seed(text: str) -> int:
    if not 0 <= int(text) < 2**32:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to below 2^32, got {text}")
    return int(text)


def share(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")
    return float(text)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "examples.lattice", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run", help="from portfolios to a report")
    command.add_argument("--data", choices=("movielens", "clothing"), default="movielens")
    command.add_argument("--out", type=Path, default=Path("build/lattice-run"), help="where all that is found is kept")
    command.add_argument("--backend", choices=tuple(BACKENDS), default="eager", help="trains and serves the networks")
    command.add_argument(
        "--time",
        nargs="+",
        choices=tuple(BACKENDS),
        help="what training steps and serving are timed under; eager and the backend by default",
    )
    command.add_argument("--seed", type=seed, default=1)
    command.add_argument("--features", type=at_least_one, default=8, help="how many of the fields and the bag are kept")
    command.add_argument("--trials", type=at_least_one, default=4, help="sizes that are tried")
    command.add_argument("--quality", type=share, default=0.0, help="the least AUC of a size, on held-out rows")
    command.add_argument(
        "--latency", type=more_than_zero, default=1.0, help="most seconds for 256 rows of a size that is tried"
    )
    command.add_argument("--quick", action="store_true", help="few rows: a rehearsal, no result")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(shell())
