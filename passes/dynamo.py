"""Running passes on the Dynamo graph: torch functions with their modules' names, forward only, before autograd."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import fx

from loka_compile import compat
from loka_compile.dispatch.plan import Plan
from loka_compile.graph.sites import module_name
from loka_compile.passes.base import Context, Pass, PassResult, Reject, rejected, run


@dataclass(frozen=True, eq=False)
class Change:
    """What one pass did to a Dynamo graph. adapts: it makes another model of it."""

    name: str
    before: fx.Graph
    after: fx.Graph
    result: PassResult
    adapts: bool = False

    def undone(self, reason: str) -> Change:
        """The graph stays as it was written after all."""
        rejects = tuple(Reject(self.name, each.site, "", f"{each.did}: {reason}") for each in self.result.rewrites)
        return replace(self, after=self.before, result=PassResult((), (*rejects, *self.result.rejects)))


def run_on_dynamo(
    gm: fx.GraphModule,
    passes: Sequence[Pass],
    device: str = "cpu",
    target: str = "cpu",
    training: bool = False,
) -> tuple[fx.GraphModule, tuple[Change, ...]]:
    """A copy of the graph after these passes, and what each did where it had something to say. The same graph where
    there is no pass to run."""
    if not passes:
        return gm, ()
    gm, changes = compat.copy_dynamo_graph(gm), []
    context = Context(Plan(target, {}), device, training)
    before = copy.deepcopy(gm.graph)
    for each in passes:
        result = run(each, gm.graph, context)
        if getattr(each, "adapts", False):
            result = replace(result, rejects=(*result.rejects, *_inside_of_others(gm.graph, each.name)))
        after = copy.deepcopy(gm.graph) if result.rewrites else before
        change = Change(each.name, before, after, result, getattr(each, "adapts", False))
        if change.adapts or result.rewrites or result.rejects:
            changes.append(change)
        before = after
    gm.recompile()
    return gm, tuple(changes)


def _inside_of_others(graph: fx.Graph, name: str) -> Iterator[Reject]:
    """What makes another model of a graph does not look into the graphs that its nodes call; warns of each."""
    for node in filter(compat.calls_graphs, graph.nodes):
        where, what = module_name(node), getattr(node.target, "__name__", str(node.target))
        reason = f"what runs inside of {what} there stays as it was; loka.adapt, without it, changes the modules"
        warnings.warn(f"loka: {name}: {where}: {reason}", stacklevel=2)
        yield replace(rejected(node, reason), pass_name=name)
