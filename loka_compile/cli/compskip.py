"""loka compskip: schedules of skipped work."""

from __future__ import annotations

import argparse

from loka_compile.cli.arguments import CommandError, Commands, example, one_line, write


def add(commands: Commands) -> None:
    skip = commands.add_parser("compskip", help="schedules of skipped work")
    suggest = skip.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "suggest", help="what each branch of a model's layers adds, measured, against its FLOPs"
    )
    suggest.add_argument("factory", metavar="MODULE:FACTORY", help="returns (model, inputs), as for explain")
    suggest.add_argument("--share", type=float, metavar="X", help="print a schedule that saves this share of the FLOPs")
    suggest.add_argument("--json", metavar="FILE", help="write the table there too")
    suggest.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from loka_compile.mods.suggest import suggest_compskip

    model, args, kwargs = example(arguments.factory)
    try:
        suggestion = suggest_compskip(model, [kwargs or args])
    except Exception as error:
        raise CommandError(f"running {arguments.factory} failed: {one_line(error)}") from error
    if arguments.json:
        write(arguments.json, suggestion.to_json())
    print(suggestion)
    if arguments.share is not None:
        try:
            print(suggestion.schedule(arguments.share))
        except ValueError as error:
            raise CommandError(f"--share: {error}") from error
    return 0
