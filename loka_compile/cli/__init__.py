"""The `loka` command: explain a model's compilation, show and compare plans, compile kernels for GPUs not at hand.

    loka explain mymodel:example --target h100       example() returns (model, inputs)
    loka plan show plan.json
    loka plan diff old.json new.json                 exit code 1 where they differ
    loka compskip suggest mymodel:example            what each branch of the layers adds, against its FLOPs
    loka kernels --target sm_90 gfx942               exit code 1 where a default configuration has a fault
    loka report mymodel:example --out report.html    one page to look at; of files too, and of two things compared
    loka preview mymodel:example --target h100       exit code 1 where a side has nothing to show or memory is short

Exit code 2 and one line on stderr where something is wrong. Torch is imported by the subcommands that need it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from loka_compile import __version__
from loka_compile.cli import compskip, explain, kernels, plan, preview, report
from loka_compile.cli.arguments import CommandError

COMMANDS = (explain, plan, kernels, compskip, preview, report)
"""One file a command: add(commands) says what it takes, run(arguments) does it and returns the exit code."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except CommandError as error:
        print(f"loka: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `loka plan show | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("loka", description="Read what torch.compile(model, backend='loka') does.")
    parser.add_argument("--version", action="version", version=f"loka {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser
