"""python -m examples.audience build | refresh | ask | serve | quality: see README.md."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np

from examples.audience.join import Corrected, Source
from examples.audience.quality import report
from examples.audience.quality.methods import constrained_regression
from examples.audience.quality.table import read, sources_of
from examples.audience.reach import query as queries
from examples.audience.reach.build import build, refresh
from examples.audience.reach.columns import Columns, Map, here
from examples.audience.reach.counters import Counters, Local
from examples.audience.reach.curve import curve
from examples.audience.reach.estimator import Estimator, Question, Unavailable
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
    columns = Columns(tuple(options.features), tuple(options.numbers), tuple(options.measures), options.user)
    with _map(options) as each:
        made = build(
            options.files, columns, options.out, options.rows, shards=options.shards, seed=options.seed, each=each
        )
    print(f"{options.out}: {made.rows:,} of {made.population:,} rows, {len(made.shards)} shards")
    print(f"strata by {', '.join(made.cover) or 'nothing: no features depend on each other'}")


def _refresh(options: argparse.Namespace) -> None:
    with _map(options) as each:
        made = refresh(options.out, options.files, n=options.rows, each=each)
    print(f"{options.out}: {made.rows:,} of {made.population:,} rows")


def _ask(options: argparse.Namespace) -> None:
    with _counters(options) as counters:
        estimator = Estimator(counters, options.seconds)
        query = queries.from_text(options.query)
        if options.curve:
            for point in curve(estimator, query, options.curve):
                print(f"{point.reach.value:14,.0f}  {point.performance.value:.4g}  {point.loosened or ''}")
            return
        question = Question(query, options.of, options.measure)
        answers = estimator.group_by(question, options.by) if options.by else {None: estimator.reach(question)}
    for value, found in answers.items():
        if options.json:
            print(json.dumps({"value of": value, **asdict(found)}))
        else:
            name = "" if value is None and not options.by else f"{value}: "
            print(
                f"{name}{found.value:,.6g} ({found.low:,.6g} to {found.high:,.6g}), {found.rows:,} rows of the sample"
            )


def _serve(options: argparse.Namespace) -> None:
    import uvicorn

    from examples.audience.reach.server import Front

    with _counters(options) as counters:
        estimator = Estimator(counters, options.seconds)
        front = Front(estimator, _corrected(estimator, options.campaigns))
        uvicorn.run(front.app(), host=options.host, port=options.port, log_level="warning")


def _corrected(estimator: Estimator, campaigns: Path | None) -> Corrected | None:
    """The sources of the file whose tags are columns of the sample."""
    if campaigns is None:
        return None
    names = [name for name in sources_of(campaigns) if name in estimator.schema.names]
    if not names:
        raise AudienceError(f"no source of {campaigns} is a feature of the sample: {sources_of(campaigns)}")
    tables = {name: read(campaigns, name) for name in names}
    sources = [Source(name, constrained_regression(table.data)) for name, table in tables.items()]
    first = tables[names[0]]
    base = np.average(first.data.reports, axis=0, weights=first.data.sizes)
    return Corrected(estimator, sources, first.categories, base.tolist(), 1 / len(sources))


def _quality(options: argparse.Namespace) -> None:
    found = report.judge(options.campaigns)
    if options.json:
        print(json.dumps(report.to_json(found), indent=1))
        return
    print(report.markdown(found))
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


@contextmanager
def _counters(options: argparse.Namespace) -> Iterator[Counters]:
    if not options.counters:
        yield Local(options.sample)
        return
    from examples.audience.reach.ray_counters import OnRay, started

    with started(options.ray):
        yield OnRay(options.sample, options.counters, options.name)


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

    ask = commands.add_parser("ask", help="how many match")
    ask.add_argument("query", help="""such as 'country == "DE" and not premium'""")
    ask.add_argument("--of", default="count", choices=["count", "users", "total", "mean"])
    ask.add_argument("--measure")
    ask.add_argument("--by", help="a feature: one answer a value")
    ask.add_argument("--curve", metavar="MEASURE", help="reach against this measure's mean as criteria are loosened")
    ask.add_argument("--json", action="store_true")
    ask.set_defaults(run=_ask)
    serve = commands.add_parser("serve", help="the HTTP front and its page")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--campaigns", type=Path, help="reports on the tags in the sample, for corrected reach")
    serve.set_defaults(run=_serve)
    for parser_ in (ask, serve):
        parser_.add_argument("--sample", type=Path, required=True)
        parser_.add_argument("--counters", type=int, default=0, help="Ray actors; 0 for one process")
        parser_.add_argument("--ray", metavar="ADDRESS", help="of a Ray cluster; without it one is started here")
        parser_.add_argument("--name", help="of counters that several servers share and that outlive them")
        parser_.add_argument("--seconds", type=float, default=1.0, help="that counters may take")

    quality = commands.add_parser("quality", help="how right sources' tags are")
    quality.add_argument("campaigns", type=Path)
    quality.add_argument("--out", type=Path, default=Path("quality-report"))
    quality.add_argument("--json", action="store_true")
    quality.set_defaults(run=_quality)
    return parser


if __name__ == "__main__":
    sys.exit(main())
