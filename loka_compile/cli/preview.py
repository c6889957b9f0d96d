"""loka preview: what a GPU that need not be here would run, kernel by kernel."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from loka_compile.cli.arguments import CommandError, Commands, add_model, find_here, write


def add(commands: Commands) -> None:
    preview = commands.add_parser("preview", help="what a GPU that need not be here would run, kernel by kernel")
    add_model(preview)
    preview.add_argument("--target", action="append", metavar="GPU", help="h100, b200, mi300x, ... (default: h100)")
    preview.add_argument(
        "--side", action="append", metavar="NAME", help="eager, inductor, loka, 'torchao rowwise', ..."
    )
    preview.add_argument("--against", default="inductor", metavar="NAME", help="the side others are compared with")
    preview.add_argument("--dtype", default="bfloat16", help="of model and inputs; 'as-is' leaves them")
    preview.add_argument("--summary", action="store_true", help="only the sides beside each other")
    preview.add_argument("--picture", metavar="FILE", help="write the timeline as PNG and SVG (needs matplotlib)")
    preview.add_argument("--save-plan", metavar="FILE", help="write the plan that won loka's race")
    preview.add_argument("--calibration", metavar="FILE", help="shares of the peaks that were measured on such a GPU")
    preview.add_argument("--save-calibration", metavar="FILE", help="where measured: write the shares attained")
    preview.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from loka_compile.preview import api, calibration, report, timeline, transport

    dtype = "" if arguments.dtype == "as-is" else arguments.dtype
    targets, source = arguments.target or ["h100"], transport.Source(arguments.factory)
    find_here()
    console, status = Console(width=None if sys.stdout.isatty() else 200, markup=False), Console(stderr=True)
    try:
        with status.status("preview") as line:
            found = api.previews(
                source,
                targets,
                arguments.training,
                arguments.against,
                arguments.side,
                arguments.plan,
                arguments.profile,
                dtype,
                arguments.calibration,
                None,
                line.update,
            )
    except (ValueError, api.PreviewError, transport.TransportError, calibration.CalibrationError) as error:
        raise CommandError(str(error)) from error
    if arguments.json:
        write(arguments.json, json.dumps([each.to_json() for each in found], indent=1) + "\n")
    for each in found:
        console.print(report.tables(each, kernels=not arguments.summary))
        if arguments.save_calibration:
            try:
                print("written:", arguments.save_calibration, calibration.save_rates(each, arguments.save_calibration))
            except calibration.CalibrationError as error:
                raise CommandError(f"--save-calibration: {error}") from error
        own = lambda name, each=each: (  # noqa: E731
            Path(name) if len(found) == 1 else Path(name).with_stem(f"{Path(name).stem}_{each.target}")
        )
        if arguments.save_plan and each.plan:
            write(str(own(arguments.save_plan)), each.plan)
        if arguments.picture:
            print("written:", *timeline.save(each, own(arguments.picture)))
    return 0 if all(each.complete for each in found) else 1
