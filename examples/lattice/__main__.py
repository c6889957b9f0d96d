"""Lattice as a whole: few consolidated models in place of one for each domain and objective.

    python -m examples.lattice run --data movielens [--out FOLDER] [--backend eager|inductor|loka]

Partitions the portfolios, filters features, sketches a size, asks a teacher, trains separate and merged networks, and
compares quality, FLOPs, parameters and serving cost. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from examples.lattice.pipeline import run
from examples.lattice.pipeline.arms import BACKENDS


def main(argv: list[str] | None = None) -> dict[str, object]:
    return run.main(parse(argv))


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
    command.add_argument("--seed", type=int, default=1)
    command.add_argument("--features", type=int, default=8, help="how many of the fields and the bag are kept")
    command.add_argument("--trials", type=int, default=4, help="sizes that are tried")
    command.add_argument("--quality", type=float, default=0.0, help="the least AUC of a size, on held-out rows")
    command.add_argument("--latency", type=float, default=1.0, help="most seconds for 256 rows of a size that is tried")
    command.add_argument("--quick", action="store_true", help="few rows: a rehearsal, no result")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
