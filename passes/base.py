"""What a pass is, what it may know, what it returns, and how it is run.

Pass            looks at a graph in a Context, rewrites it in place, and returns a PassResult:
Rewrite         what it did, and where
Reject          what it looked at and left, and why; all of them are in `loka.explain`
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, TypeVar

from torch import fx

from loka_compile.graph.facts import Reading
from loka_compile.graph.sites import SITE_META, module_name
from loka_compile.spec.plan import Plan
from loka_compile.spec.sizes import Sizes

Found = TypeVar("Found")
Looked = TypeVar("Looked", contravariant=True)
"""A graph in ATen operators; of a Dynamo graph the reading."""

EVERYWHERE = ("cpu", "cuda")
"""The devices of a pass that serves both."""


@dataclass(frozen=True)
class Reject:
    """A pass left something alone.

    pass_name: who; `run` fills it in. site: where in the model, the key of a GEMM or the path of a module; "" for all
    of the graph. node: its name in the graph, "" where it is more than one. reason: why, with the offending value.
    """

    pass_name: str
    site: str
    node: str
    reason: str


@dataclass(frozen=True)
class Rewrite:
    """What was done at `site`; `kernel` is the callee that the generated code must then contain.

    `mm[bfloat16]` is a call of `mm` that writes bfloat16.
    """

    site: str
    did: str
    kernel: str = ""


@dataclass(frozen=True)
class PassResult:
    rewrites: tuple[Rewrite, ...] = ()
    rejects: tuple[Reject, ...] = ()


@dataclass(frozen=True)
class Context:
    """What a pass may know: the plan, the device type (`cpu`, `cuda`) of the graph it works on, and, on a Dynamo graph,
    whether it will be differentiated. by_onednn: whether a float32 product of these sizes is faster by oneDNN here."""

    plan: Plan
    device: str = "cpu"
    training: bool = False
    by_onednn: Callable[[Sizes], bool] = lambda sizes: False


class Pass(Protocol[Looked]):
    """A frozen dataclass with a name, and the devices it serves, that rewrites a graph in place.

    It leaves the graph linted, every new node with `meta["val"]`, the module's name and the site's. It is a pure
    function of graph and context: records are rebuilt by running it again. One on a Dynamo graph is given the reading
    of it, which tells what the nodes do whatever their spelling, and rewrites through graph/edit.py, which keeps the
    reading. One that makes another model of the graph has `adapts = True`, and is never silent.
    """

    runs_on: ClassVar[tuple[str, ...]]

    @property
    def name(self) -> str: ...

    def __call__(self, looked_at: Looked, context: Context, /) -> PassResult: ...


GraphPass, DynamoPass = Pass[fx.Graph], Pass[Reading]


def run(each: Pass[Looked], looked_at: Looked, context: Context) -> PassResult:
    """A pass on a graph, where it serves the graph's device; where it does not, that is its one refusal."""
    if context.device not in each.runs_on:
        reason = f"runs on {', '.join(each.runs_on)}, this graph is on {context.device}"
        return PassResult(rejects=(Reject(each.name, "", "", reason),))
    result = each(looked_at, context)
    return replace(result, rejects=tuple(replace(reject, pass_name=each.name) for reject in result.rejects))


def rejected(at: fx.Node | Sequence[fx.Node] | str, reason: str) -> Reject:
    """A refusal at a node, at several, or at a module's path."""
    if isinstance(at, str):
        return Reject("", at, "", reason)
    if isinstance(at, fx.Node):
        return Reject("", site_of(at), at.name, reason)
    return Reject("", ", ".join(map(site_of, at)), "", reason)


def site_of(node: fx.Node) -> str:
    """The key of the GEMM that the node is, or was; the path of its module where it is none."""
    return node.meta[SITE_META].key if SITE_META in node.meta else module_name(node)


def apply(
    graph: fx.Graph,
    nodes: Iterable[fx.Node],
    pattern: Callable[[fx.Node], Found | None],
    check: Callable[[Found], str],
    rewrite: Callable[[Found], Rewrite],
) -> PassResult:
    """One rule on these nodes: what `pattern` finds is rewritten where `check` gives no reason against it."""
    rewrites, rejects = [], []
    for node in list(nodes):
        found = pattern(node)
        if found is None:
            continue
        reason = check(found)
        if reason:
            rejects.append(rejected(node, reason))
        else:
            rewrites.append(rewrite(found))
    graph.lint()
    return PassResult(tuple(rewrites), tuple(rejects))
