"""loka report: a page that shows a compilation, a plan, a profile or a preview, or compares two of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from loka_compile.cli.arguments import CommandError, Commands, add_source, compiled_of, one_line, options_of, write

OF_A_FACTORY = ("target", "plan", "profile", "training")
"""Options that say how a model is compiled."""


def add(commands: Commands) -> None:
    report = commands.add_parser("report", help="write a page that shows a compilation, or compares two")
    files = "a plan, a profile, a preview's or a report's JSON"
    what = f"a model's factory, as for explain; or {files}. Two of them are compared"
    report.add_argument("what", metavar="MODULE:FACTORY | FILE", nargs="+", help=what)
    report.add_argument("--target", action="append", help="hardware the plan is for; two of them are compared")
    add_source(report)
    report.add_argument("--out", metavar="FILE", default="report.html", help="the page (default: report.html)")
    report.add_argument("--json", metavar="FILE", help="write its data there too")
    report.add_argument("--model-explorer", metavar="DIR", help="write graphs and node data for Model Explorer there")
    report.add_argument("--trace", metavar="FILE", help="write Chrome trace events, for Perfetto")
    report.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from loka_compile.report import chrome_trace, model_explorer
    from loka_compile.report.compare import compared
    from loka_compile.report.errors import ReportError
    from loka_compile.report.page import as_json, html

    try:
        found = [made for what in arguments.what for made in _reports(what, arguments)]
        if len(found) > 2:
            raise CommandError(f"expected one or two things to report, got {len(found)}: {_names(found)}")
        report = compared(*found) if len(found) == 2 else found[0]
        write(arguments.out, html(report))
        written = [arguments.out]
        if arguments.json:
            write(arguments.json, as_json(report))
            written.append(arguments.json)
        if arguments.model_explorer:
            try:
                written += map(str, model_explorer.save(found, Path(arguments.model_explorer)))
            except OSError as error:
                raise CommandError(f"cannot write {arguments.model_explorer}: {error.strerror or error}") from error
        if arguments.trace:
            write(arguments.trace, chrome_trace.as_json(found))
            written.append(arguments.trace)
    except ReportError as error:
        raise CommandError(str(error)) from error
    print("written:", *written)
    return 0


def _reports(what: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One a target for a factory, one for a file."""
    from loka_compile.report import document, files

    module, colon, _ = what.partition(":")
    if not colon or Path(what).exists() or "/" in module:
        if given := [f"--{name}" for name in OF_A_FACTORY if getattr(arguments, name)]:
            names = ", ".join(given)
            raise CommandError(f"{what} is a file, for which {names} means nothing; that goes with MODULE:FACTORY")
        return [files.read(what)]
    targets = arguments.target or [None]
    return [_of_factory(what, target, arguments, document, len(targets) > 1) for target in targets]


def _of_factory(what: str, target: str | None, arguments: argparse.Namespace, document: Any, several: bool) -> Any:
    options = options_of(argparse.Namespace(target=target, plan=arguments.plan, profile=arguments.profile))
    compiled = compiled_of(what, options, arguments.training)
    try:
        return document.of_compiled(compiled, f"{what} on {target}" if several else what)
    except Exception as error:
        raise CommandError(f"reporting {what} failed: {one_line(error)}") from error


def _names(found: list[dict[str, Any]]) -> str:
    return ", ".join(report["title"] for report in found)
