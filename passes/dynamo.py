"""Running passes on the Dynamo graph: torch functions with their modules' names, forward only, before autograd."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from loka_compile import compat
from loka_compile.dispatch.plan import Plan
from loka_compile.passes.base import Context, Pass, PassResult


@dataclass(frozen=True, eq=False)
class Change:
    """What one pass did to a Dynamo graph. adapts: it makes another model of it."""

    name: str
    before: fx.Graph
    after: fx.Graph
    result: PassResult
    adapts: bool = False


def run_on_dynamo(
    gm: fx.GraphModule, passes: Sequence[Pass], device: str = "cpu"
) -> tuple[fx.GraphModule, tuple[Change, ...]]:
    """A copy of the graph after these passes, and what each did. The same graph where there is none to run."""
    if not passes:
        return gm, ()
    gm, changes = compat.copy_dynamo_graph(gm), []
    context = Context(Plan("cpu", {}), device)
    for each in passes:
        before = copy.deepcopy(gm.graph)
        result = each(gm.graph, context)
        changes.append(Change(each.name, before, copy.deepcopy(gm.graph), result, getattr(each, "adapts", False)))
    gm.recompile()
    return gm, tuple(changes)
