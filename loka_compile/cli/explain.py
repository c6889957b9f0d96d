"""loka explain: compile a model and print every decision with its reason."""

from __future__ import annotations

import argparse

from loka_compile.cli.arguments import CommandError, Commands, add_model, compiled_of, one_line, options_of, show, write


def add(commands: Commands) -> None:
    explain = commands.add_parser("explain", help="compile a model and print every decision with its reason")
    add_model(explain)
    explain.add_argument("--target", help="hardware the plan is for (default: this machine)")
    explain.add_argument("--why", metavar="SITE", help="print all that is known of one site, or of a module's")
    explain.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    import loka_compile

    compiled = compiled_of(arguments.factory, options_of(arguments), arguments.training)
    try:
        explanation = loka_compile.explain(compiled)
    except Exception as error:
        raise CommandError(f"explaining {arguments.factory} failed: {one_line(error)}") from error
    if arguments.json:
        write(arguments.json, explanation.to_json())
    if not arguments.why:
        show(explanation)
        return 0
    try:
        print(explanation.why(arguments.why))
    except ValueError as error:
        raise CommandError(f"--why: {error}") from error
    return 0
