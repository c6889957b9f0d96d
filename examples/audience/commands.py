"""The commands `ask` and `serve`: their options, and answers as lines for people."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from examples.audience.join import Corrected, Source
from examples.audience.quality.fitted import fitted
from examples.audience.quality.table import read, sources_of
from examples.audience.reach.asking import Asking, Plain
from examples.audience.reach.counters import Counters, Local
from examples.audience.reach.estimator import Estimator
from examples.audience.reach.schema import AudienceError
from examples.audience.reach.text import OPERATORS

QUERIES = f"""a query, in Python's spelling of comparisons:

{OPERATORS}

Texts stand in quotes; True, False and None have capitals. A whole query stands in the shell's quotes:
  ask --sample sample "country == 'DE' and 18 <= age < 25"
"""


def add(commands: Any) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    ask = commands.add_parser("ask", help="how many match", epilog=QUERIES, formatter_class=raw)
    ask.add_argument("query", help="such as \"country == 'DE' and not premium\"; `everybody` for all; see below")
    of = ["count", "users", "total", "mean"]
    ask.add_argument("--of", choices=of, help="of rows (the default), users or a measure")
    ask.add_argument("--measure", help="whose total or mean")
    kind = ask.add_mutually_exclusive_group()
    kind.add_argument("--by", metavar="FEATURE", help="one answer a value")
    kind.add_argument("--overlap", metavar="QUERY", help="who is in both audiences, and in either alone")
    kind.add_argument("--curve", metavar="MEASURE", help="reach against its mean as criteria are loosened")
    kind.add_argument("--forecast", metavar="FEATURE", help="coming days; the feature holds days as text, 2026-11-29")
    kind.add_argument("--category", help="how many are of it, whatever their tags say; needs --campaigns")
    ask.add_argument("--days", type=int, help="to forecast, 7 by default")
    ask.add_argument(
        "--holds", choices=["fits", "tags", "errors"], help="what is the same in every audience, with --category"
    )
    ask.add_argument("--json", action="store_true", help="the answer as the HTTP API gives it")
    ask.set_defaults(run=_ask)
    serve = commands.add_parser("serve", help="the HTTP API and its page")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8000)
    serve.set_defaults(run=_serve)
    for each in (ask, serve):
        each.add_argument("--sample", type=Path, required=True, help="the folder that `build` wrote")
        each.add_argument("--campaigns", type=Path, help="reports on the tags in the sample, for true categories")
        each.add_argument("--counters", type=int, default=0, help="Ray actors; 0 for one process")
        each.add_argument("--ray", metavar="ADDRESS", help="of a Ray cluster; without it one is started here")
        each.add_argument("--name", help="of counters that several servers share and that outlive them")
        each.add_argument("--seconds", type=float, default=1.0, help="that counters may take")


def _ask(options: argparse.Namespace) -> None:
    what, body = _body(options)
    with _counters(options) as counters:
        estimator = Estimator(counters, options.seconds)
        asking = Asking(estimator, _corrected(estimator, options.campaigns))
        answer = getattr(asking, what)(body)
    for line in [json.dumps(answer)] if options.json else said(what, body, answer):
        print(line)


def _body(options: argparse.Namespace) -> tuple[str, Plain]:
    """Which question it is, and its fields."""
    given = {name: getattr(options, name) for name in ("of", "measure", "by", "category", "holds", "days")}
    body = {name: value for name, value in given.items() if value is not None}
    if options.overlap is not None:
        return "overlap", {"first": options.query, "second": options.overlap} | body
    body = {"query": options.query} | body
    if options.curve is not None:
        if options.measure is not None:
            raise AudienceError("--curve names the measure; leave --measure out")
        return "curve", body | {"measure": options.curve}
    if options.forecast is not None:
        return "forecast", body | {"day": options.forecast}
    return "reach", body | ({"truth": "corrected"} if options.category is not None else {})


def said(what: str, body: Plain, answer: Plain) -> Iterator[str]:
    """The answer in lines."""
    if what == "overlap":
        for name, words in (("both", "in both"), ("first", "in the first alone"), ("second", "in the second alone")):
            yield f"{words}: {_reach(answer[name])}"
        yield f"both over either: {answer['jaccard']:.3g}"
    elif what == "curve":
        yield f"{'reach (95 %)':>36}  {'mean of ' + body['measure'] + ' (95 %)':<34}  loosened"
        for point in answer["points"]:
            mean = _figure(point["performance"], False)
            yield f"{_figure(point['reach']):>36}  {mean:<34}  {point['loosened'] or ''}"
    elif what == "forecast":
        for day, reach in answer["coming"].items():
            yield f"{day}: {_figure(reach)}"
        past = list(answer["past"])
        yield f"growth by week {round(answer['growth'], 3) + 0.0:.1%}, from {len(past)} days, {past[0]} to {past[-1]}"
    elif "by" in answer:
        for each in answer["by"]:
            yield f"{each['group']}: {_reach(each, body.get('of') not in ('total', 'mean'))}"
    else:
        yield _reach(answer, body.get("of") not in ("total", "mean"))
        if "tagged" in answer:
            yield f"by their tags alone: {_reach(answer['tagged'])}"
        yield from (f"mind: {note}" for note in answer.get("notes", ()))


def _reach(reach: Plain, people: bool = True) -> str:
    words = [_figure(reach, people), f"{reach['rows']:,} rows of the sample"]
    if reach["answered"] < 1:
        words.append(f"only {reach['answered']:.0%} of the sample answered")
    return ", ".join(words) + (f"; {reach['note']}" if "note" in reach else "")


def _figure(reach: Plain, people: bool = True) -> str:
    """people: a count, else a measure."""
    value, low, high = (_number(reach[name], people) for name in ("value", "low", "high"))
    if people and reach["low"] == reach["value"] == reach["high"]:  # a mean of few rows that agree is not exact
        return f"{value} exactly"
    return f"{value} ({low} to {high})"


def _number(value: float | None, people: bool) -> str:
    if value is None:
        return "unknown"
    whole = value == round(value) or abs(value) >= (10 if people else 100_000)
    return f"{value:,.0f}" if whole else f"{value:,.2g}" if people else f"{value:,.6g}"


def _serve(options: argparse.Namespace) -> None:
    import uvicorn

    from examples.audience.reach.server import Front

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                port = self.servers[0].sockets[0].getsockname()[1]
                print(f"ready: http://{options.host}:{port}/ (the page; the API is below /v1/)", flush=True)

    print(f"reading {options.sample} ...", flush=True)
    with _counters(options) as counters:
        estimator = Estimator(counters, options.seconds)
        front = Front(estimator, _corrected(estimator, options.campaigns))
        Server(uvicorn.Config(front.app(), host=options.host, port=options.port, log_level="warning")).run()


def _corrected(estimator: Estimator, campaigns: Path | None) -> Corrected | None:
    """The sources of the file whose tags are columns of the sample."""
    if campaigns is None:
        return None
    names = [name for name in sources_of(campaigns) if name in estimator.schema.names]
    if not names:
        raise AudienceError(
            f"no source of {campaigns} is a feature of the sample: its sources are {sources_of(campaigns)}, the "
            f"sample's features {[each.name for each in estimator.schema.features]}; build it with the tags as features"
        )
    tables = {name: read(campaigns, name) for name in names}
    sources = [Source(name, fitted(table.data)) for name, table in tables.items()]
    first = tables[names[0]]
    base = np.average(first.data.reports, axis=0, weights=first.data.sizes)
    return Corrected(estimator, sources, first.categories, base.tolist(), 1 / len(sources))


@contextmanager
def _counters(options: argparse.Namespace) -> Iterator[Counters]:
    if not options.counters:
        yield Local(options.sample)
        return
    logging.getLogger("ray").setLevel(logging.ERROR)  # what it says of itself is for who runs the cluster
    from examples.audience.reach.ray_counters import OnRay, started

    with started(options.ray, logging_level=logging.ERROR):
        yield OnRay(options.sample, options.counters, options.name)
