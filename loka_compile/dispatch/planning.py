"""Settling the plan of a graph: given, dispatched from a profile, or from a look at the first batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from loka_compile.dispatch.plan import Plan, load_plan
from loka_compile.options import Options


def settle(options: Options, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Plan:
    if options.plan is not None:
        return options.plan if isinstance(options.plan, Plan) else load_plan(options.plan)
    raise NotImplementedError
