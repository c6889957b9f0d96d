"""What a pass is, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import fx

from loka_compile.dispatch.plan import Plan
from loka_compile.graph.sites import module_name
from loka_compile.graph.writes import mark

Found = TypeVar("Found")


@dataclass(frozen=True)
class Reject:
    """A rule looked at `subject` (a site key or a node's name) and left it alone: why, with the offending value."""

    subject: str
    reason: str


@dataclass(frozen=True)
class Rewrite:
    """What was done to `subject`; `kernel` is the callee that the generated code must then contain.

    `mm[bfloat16]` is a call of `mm` that writes bfloat16.
    """

    subject: str
    did: str
    kernel: str = ""


@dataclass(frozen=True)
class PassResult:
    rewrites: tuple[Rewrite, ...] = ()
    rejects: tuple[Reject, ...] = ()


@dataclass(frozen=True)
class Context:
    """What a pass may know: the plan, the device type (`cpu`, `cuda`) of the graph it works on, and, on a Dynamo graph,
    whether it will be differentiated."""

    plan: Plan
    device: str = "cpu"
    training: bool = False


class Pass(Protocol):
    """A frozen dataclass with a name that rewrites a graph in place.

    It leaves the graph linted, every new node with `meta["val"]`, the module's name and the site's. It is a pure
    function of graph and context: records are rebuilt by running it again. One on the Dynamo graph that makes another
    model of it has `adapts = True`, and is never silent.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult: ...


def apply(
    graph: fx.Graph,
    nodes: Iterable[fx.Node],
    pattern: Callable[[fx.Node], Found | None],
    check: Callable[[Found], str],
    rewrite: Callable[[Found], Rewrite],
) -> PassResult:
    """One rule on these nodes: what `pattern` finds is rewritten where `check` gives no reason against it."""
    rewrites, rejects, nodes = [], [], list(nodes)
    if nodes:
        mark(graph)
    for node in nodes:
        found = pattern(node)
        if found is None:
            continue
        reason = check(found)
        if reason:
            rejects.append(Reject(module_name(node), reason))
        else:
            rewrites.append(rewrite(found))
    graph.lint()
    return PassResult(tuple(rewrites), tuple(rejects))
