"""python -m examples.audience build | refresh | ask | serve | quality: see README.md.

What builds a sample imports PyTorch, and is imported where one is built: a server that was killed is there again
a second and a half earlier.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from examples.audience.commands import add
from examples.audience.quality import report
from examples.audience.quality.offers import offers
from examples.audience.quality.table import FILE
from examples.audience.reach.columns import Columns, Map, here
from examples.audience.reach.estimator import Unavailable
from examples.audience.reach.schema import AudienceError


def main(argv: list[str] | None = None) -> int:
    """Runs one command; 2 with a message for what cannot be done."""
    options = _parser().parse_args(argv)
    try:
        options.run(options)
    except (AudienceError, Unavailable, ValueError) as error:
        own = getattr(error, "cause", error)  # Ray adds the traceback of the process that raised it
        print(f"audience {options.command}: {own}", file=sys.stderr)
        return 2
    return 0


def _build(options: argparse.Namespace) -> None:
    from examples.audience.reach.build import build

    columns = Columns(tuple(options.features), tuple(options.numbers), tuple(options.measures), options.user)
    with _map(options) as each:
        made = build(
            options.files, columns, options.out, options.rows, shards=options.shards, seed=options.seed, each=each
        )
    print(f"{options.out}: {made.rows:,} of {made.population:,} rows, {len(made.shards)} shards")
    print(f"strata by {', '.join(made.cover) or 'nothing: no features depend on each other'}")


def _refresh(options: argparse.Namespace) -> None:
    from examples.audience.reach.build import refresh

    with _map(options) as each:
        made = refresh(options.out, options.files, n=options.rows, each=each)
    print(f"{options.out}: {made.rows:,} of {made.population:,} rows")


def _quality(options: argparse.Namespace) -> None:
    if (options.buy is None) != (options.price is None or options.value is None):
        raise AudienceError("--buy goes with --price and --value")
    found = report.judge(options.campaigns)
    if options.json:
        print(json.dumps(report.to_json(found), indent=1))
        return
    print(report.markdown(found))
    if options.buy is not None:
        print(offers(found, options.buy, options.price, options.value))
    print(f"with pictures: {report.write(found, options.out)}")


@contextmanager
def _map(options: argparse.Namespace) -> Iterator[Map]:
    """How `build` runs over the files: in this process, or on Ray."""
    if not options.ray:
        yield here
        return
    from examples.audience.reach.ray_counters import on_ray, started

    with started():
        yield on_ray


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m examples.audience", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    each = commands.add_parser("build", help="a sample of Parquet files")
    each.add_argument("files", nargs="+", type=Path)
    each.add_argument("--features", nargs="*", default=[], help="columns with few values")
    each.add_argument("--numbers", nargs="*", default=[], help="columns to ask ranges of")
    each.add_argument("--measures", nargs="*", default=[], help="columns to sum and average")
    each.add_argument("--user", help="the column that names the user: users are sampled and can be counted")
    each.add_argument("--rows", type=int, default=30_000)
    each.add_argument("--shards", type=int, default=4)
    each.add_argument("--seed", type=int, default=0)
    each.set_defaults(run=_build)
    again = commands.add_parser("refresh", help="yesterday's sample for today's files")
    again.add_argument("files", nargs="+", type=Path)
    again.add_argument("--rows", type=int, help="by default the same share of all rows")
    again.set_defaults(run=_refresh)
    for parser_ in (each, again):
        parser_.add_argument("--out", type=Path, required=True, help="the folder of the sample")
        parser_.add_argument("--ray", action="store_true", help="read the files in parallel")

    add(commands)

    raw = argparse.RawDescriptionHelpFormatter
    quality = commands.add_parser("quality", help="how right sources' tags are", epilog=FILE, formatter_class=raw)
    quality.add_argument("campaigns", type=Path, help="a Parquet or CSV file, one row a campaign; see below")
    quality.add_argument("--out", type=Path, default=Path("quality-report"), help="the folder of the report")
    quality.add_argument("--json", action="store_true", help="the figures instead")
    quality.add_argument("--buy", metavar="CATEGORY", help="say which tags are worth their price to reach it")
    quality.add_argument("--price", type=float, help="of one user")
    quality.add_argument("--value", type=float, help="of one user who is of the category")
    quality.set_defaults(run=_quality)
    return parser


if __name__ == "__main__":
    sys.exit(main())
