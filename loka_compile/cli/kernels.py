"""loka kernels: compile Triton kernels for GPUs that need not be here, and read their machine code."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys

from loka_compile.cli.arguments import CommandError, Commands, find_here, write


def add(commands: Commands) -> None:
    kernels = commands.add_parser(
        "kernels", help="compile every Triton kernel for GPUs that need not be here and read the machine code"
    )
    kernels.add_argument(
        "--target", nargs="+", action="extend", metavar="CHIP", help="sm_90, gfx942, h100, ... (default: all)"
    )
    kernels.add_argument("--kernel", default="", metavar="NAME", help="only those with this in their name")
    kernels.add_argument("--module", default="", help="not loka's kernels but those of a module with specimens(arch)")
    kernels.add_argument("--json", metavar="FILE", help="write all figures there too")
    kernels.add_argument("--jobs", type=int, default=1, metavar="N", help="chips compiled side by side (default: 1)")
    kernels.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from loka_compile.machine import kernel_report
    from loka_compile.spec.chips import arch_of

    try:
        archs = arch_of(*(arguments.target or ()))
    except ValueError as error:
        raise CommandError(str(error)) from error
    if arguments.jobs < 1:
        raise CommandError(f"--jobs: expected at least 1, got {arguments.jobs}")
    if arguments.module:
        find_here()
        if not importlib.util.find_spec(arguments.module):
            raise CommandError(f"there is no module {arguments.module}")
    rows = kernel_report.survey(archs, arguments.kernel, arguments.module, arguments.jobs)
    if not rows:
        raise CommandError(f"no kernel is listed with {arguments.kernel!r} in its name")
    if arguments.json:
        write(arguments.json, json.dumps(kernel_report.to_json(rows), indent=1) + "\n")
    Console(width=None if sys.stdout.isatty() else 200, markup=False).print(*kernel_report.tables(rows), sep="\n\n")
    return 1 if any(row.faults for row in rows) else 0
