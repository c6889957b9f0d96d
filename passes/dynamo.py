"""Running passes on the Dynamo graph: torch functions with their modules' names, forward only, before autograd."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import fx

from loka_compile import compat
from loka_compile.graph.apart import write_apart
from loka_compile.graph.facts import Reading
from loka_compile.graph.reader import read
from loka_compile.graph.sites import module_name
from loka_compile.passes.base import Context, DynamoPass, PassResult, Reject, rejected, run
from loka_compile.spec.plan import Plan


@dataclass(frozen=True, eq=False)
class Change:
    """The effect of one pass on a Dynamo graph. adapts: the pass changes what the model computes."""

    name: str
    before: fx.Graph
    after: fx.Graph
    result: PassResult
    adapts: bool = False

    def undone(self, reason: str) -> Change:
        """The change taken back: the graph before it, and its rewrites as refusals for `reason`."""
        rejects = tuple(Reject(self.name, each.site, "", f"{each.did}: {reason}") for each in self.result.rewrites)
        return replace(self, after=self.before, result=PassResult((), (*rejects, *self.result.rejects)))


@dataclass(frozen=True, eq=False)
class Read:
    """A Dynamo graph with its reading, which all passes share."""

    gm: fx.GraphModule
    reading: Reading

    @classmethod
    def of(cls, gm: fx.GraphModule) -> Read:
        return cls(gm, read(gm.graph))

    def copy(self) -> Read:
        gm = compat.copy_dynamo_graph(self.gm)
        twin = dict(zip(self.gm.graph.nodes, gm.graph.nodes, strict=True))
        return Read(gm, self.reading.moved(gm.graph, twin))


def run_on_dynamo(
    gm: fx.GraphModule,
    passes: Sequence[DynamoPass],
    device: str = "cpu",
    target: str = "cpu",
    training: bool = False,
) -> tuple[fx.GraphModule, tuple[Change, ...]]:
    """Run passes on a graph that nobody has read yet: `rewritten` for callers that need no reading afterwards."""
    if not passes:
        return gm, ()
    after, changes = rewritten(Read.of(gm), passes, Context(Plan(target, {}), device, training))
    return after.gm, changes


def rewritten(graph: Read, passes: Sequence[DynamoPass], context: Context) -> tuple[Read, tuple[Change, ...]]:
    """Run these passes on a copy of the graph.

    Returns the copy and one Change for each pass that rewrote or refused something, or adapts. The graph itself comes
    back if none of the passes serves the device.
    """
    changes, came = [], graph.gm.graph
    before = came
    if any(context.device in each.runs_on for each in passes):
        graph = graph.copy()
        write_apart(graph.reading)
    gm, reading = graph.gm, graph.reading
    for each in passes:
        adapts, result = getattr(each, "adapts", False), run(each, reading, context)
        if adapts:
            result = replace(result, rejects=(*result.rejects, *_inside_of_others(gm.graph, each.name)))
            reading = read(gm.graph) if result.rewrites else reading
        after = copy.deepcopy(gm.graph) if result.rewrites else before
        if adapts or result.rewrites or result.rejects:
            changes.append(Change(each.name, before, after, result, adapts))
        before = after
    if gm.graph is not came:
        gm.recompile()
    return Read(gm, reading), tuple(changes)


def _inside_of_others(graph: fx.Graph, name: str) -> Iterator[Reject]:
    """The refusals of an adapting pass for functions that the graph's nodes call (checkpoint, cond): their bodies are
    not changed. Warns about each."""
    for node in filter(compat.calls_graphs, graph.nodes):
        where, what = module_name(node), getattr(node.target, "__name__", str(node.target))
        reason = (
            f"{what} calls a graph of its own, which this pass does not change; loka.adapt(model) changes its modules"
        )
        warnings.warn(f"loka: {name}: {where}: {reason}", stacklevel=2)
        yield replace(rejected(node, reason), pass_name=name)
