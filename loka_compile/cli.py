"""The `loka` command: explain a model's compilation, show and compare plans, compile kernels for GPUs not at hand.

    loka explain mymodel:example --target h100       example() returns (model, inputs)
    loka plan show plan.json
    loka plan diff old.json new.json                 exit code 1 where they differ
    loka compskip suggest mymodel:example            what each branch of the layers adds, against its FLOPs
    loka kernels --target sm_90 gfx942               exit code 1 where a default configuration has a fault
    loka preview mymodel:example --target h100       exit code 1 where a side has nothing to show or memory is short

Exit code 2 and one line on stderr where something is wrong. Torch is imported by the subcommands that need it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loka_compile import __version__
from loka_compile.arguments import CommandError, backward, example, find_here, one_line, options_of, plan_in, write


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
    explain.set_defaults(run=_explain)

    plan = commands.add_parser("plan", help="read plan files").add_subparsers(required=True, metavar="COMMAND")
    show = plan.add_parser("show", help="print a plan as a table")
    show.add_argument("plan", metavar="PLAN")
    show.set_defaults(run=_show)
    diff = plan.add_parser("diff", help="what differs in target, sites and choices; exit code 1 if anything does")
    diff.add_argument("a", metavar="A")
    diff.add_argument("b", metavar="B")
    diff.set_defaults(run=_diff)

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
    kernels.set_defaults(run=_kernels)

    skip = commands.add_parser("compskip", help="schedules of skipped work")
    suggest = skip.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "suggest", help="what each branch of a model's layers adds, measured, against its FLOPs"
    )
    suggest.add_argument("factory", metavar="MODULE:FACTORY", help="returns (model, inputs), as for explain")
    suggest.add_argument("--share", type=float, metavar="X", help="print a schedule that saves this share of the FLOPs")
    suggest.add_argument("--json", metavar="FILE", help="write the table there too")
    suggest.set_defaults(run=_suggest)

    preview = commands.add_parser("preview", help="what a GPU that need not be here would run, kernel by kernel")
    preview.add_argument("factory", metavar="MODULE:FACTORY", help="returns (model, inputs), as for explain")
    preview.add_argument("--target", action="append", metavar="GPU", help="h100, b200, mi300x, ... (default: h100)")
    preview.add_argument("--training", action="store_true", help="forward and backward")
    preview.add_argument(
        "--side", action="append", metavar="NAME", help="eager, inductor, loka, 'torchao rowwise', ..."
    )
    preview.add_argument("--against", default="inductor", metavar="NAME", help="the side others are compared with")
    decided = preview.add_mutually_exclusive_group()
    decided.add_argument("--plan", metavar="FILE", help="loka follows this plan")
    decided.add_argument("--profile", metavar="FILE", help="loka's plan is made from this profile")
    preview.add_argument("--dtype", default="bfloat16", help="of model and inputs; 'as-is' leaves them")
    preview.add_argument("--summary", action="store_true", help="only the sides beside each other")
    preview.add_argument("--json", metavar="FILE", help="write everything there too")
    preview.add_argument("--picture", metavar="FILE", help="write the timeline as PNG and SVG (needs matplotlib)")
    preview.add_argument("--save-plan", metavar="FILE", help="write the plan that won loka's race")
    preview.add_argument("--calibration", metavar="FILE", help="shares of the peaks that were measured on such a GPU")
    preview.add_argument("--save-calibration", metavar="FILE", help="where measured: write the shares attained")
    preview.set_defaults(run=_preview)
    return parser


# ---------------------------------------------------------------- subcommands


def _explain(arguments: argparse.Namespace) -> int:
    model, args, kwargs = example(arguments.factory)
    options = options_of(arguments)

    import torch

    import loka_compile

    compiled = torch.compile(model, backend="loka", options=options)
    try:
        with torch.set_grad_enabled(arguments.training):
            out = compiled(*args, **kwargs)
            if arguments.training:
                backward(out)
        explanation = loka_compile.explain(compiled)
    except CommandError:
        raise
    except Exception as error:
        error = getattr(error, "inner_exception", error)  # Dynamo wraps what a backend raises
        raise CommandError(f"compiling {arguments.factory} failed: {one_line(error)}") from error
    if arguments.json:
        write(arguments.json, explanation.to_json())
    _print(explanation)
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from loka_compile.inspect.explain import explain_plan

    _print(explain_plan(plan_in(arguments.plan)))
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    from loka_compile.spec.plan_diff import diff

    difference = diff(plan_in(arguments.a), plan_in(arguments.b))
    print(difference)
    return 1 if difference else 0


def _suggest(arguments: argparse.Namespace) -> int:
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


def _kernels(arguments: argparse.Namespace) -> int:
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


def _preview(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from loka_compile.preview import api, calibration, report, timeline, transport

    dtype = "" if arguments.dtype == "as-is" else arguments.dtype
    targets, source = arguments.target or ["h100"], transport.Source(arguments.factory)
    find_here()
    console, status = Console(width=None if sys.stdout.isatty() else 200, markup=False), Console(stderr=True)
    try:
        with status.status("preview") as line:
            found = api.previews(
                source, targets, arguments.training, arguments.against, arguments.side, arguments.plan,
                arguments.profile, dtype, arguments.calibration, None, line.update,
            )  # fmt: skip
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


def _print(explanation: Any) -> None:
    """In colour on a terminal, as plain text elsewhere."""
    if not sys.stdout.isatty():
        print(explanation)
        return
    from rich.console import Console

    Console().print(explanation)
