"""loka explain: compile a model and print every decision with its reason."""

from __future__ import annotations

import argparse

from loka_compile.cli.arguments import CommandError, Commands, compiled_of, one_line, options_of, show, write


def add(commands: Commands) -> None:
    explain = commands.add_parser("explain", help="compile a model and print every decision with its reason")
    explain.add_argument(
        "factory", metavar="MODULE:FACTORY",
        help="a callable without arguments that returns (model, inputs); inputs are a tuple, or a dict of keywords",
    )  # fmt: skip
    explain.add_argument("--target", help="hardware the plan is for (default: this machine)")
    source = explain.add_mutually_exclusive_group()
    source.add_argument("--plan", metavar="FILE", help="follow this plan")
    source.add_argument("--profile", metavar="FILE", help="make the plan from this profile")
    explain.add_argument("--training", action="store_true", help="compile forward and backward")
    explain.add_argument("--json", metavar="FILE", help="write the explanation there too")
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
    show(explanation)
    return 0
