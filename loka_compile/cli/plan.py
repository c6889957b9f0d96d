"""loka plan: read plan files, and compare them."""

from __future__ import annotations

import argparse

from loka_compile.cli.arguments import Commands, plan_in, show


def add(commands: Commands) -> None:
    plan = commands.add_parser("plan", help="read plan files").add_subparsers(required=True, metavar="COMMAND")
    shown = plan.add_parser("show", help="print a plan as a table")
    shown.add_argument("plan", metavar="PLAN")
    shown.set_defaults(run=run_show)
    diff = plan.add_parser("diff", help="what differs in target, sites and choices; exit code 1 if anything does")
    diff.add_argument("a", metavar="A")
    diff.add_argument("b", metavar="B")
    diff.set_defaults(run=run_diff)


def run_show(arguments: argparse.Namespace) -> int:
    from loka_compile.inspect.explain import explain_plan

    show(explain_plan(plan_in(arguments.plan)))
    return 0


def run_diff(arguments: argparse.Namespace) -> int:
    from loka_compile.spec.plan_diff import diff

    difference = diff(plan_in(arguments.a), plan_in(arguments.b))
    print(difference)
    return 1 if difference else 0
