"""The contract of a pass: its input, its result, and how it is run.

A pass is called with a graph and a Context. It rewrites the graph in place and returns a PassResult of
    Rewrite    one change: where, and what was done
    Reject     one refusal: where, and why; `loka.explain` shows all of them
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, TypeAlias, TypeVar

from torch import fx

from loka_compile.graph.facts import Reading
from loka_compile.graph.sites import SITE_META, module_name
from loka_compile.spec.plan import Plan
from loka_compile.spec.sizes import Sizes

Found = TypeVar("Found")
Looked = TypeVar("Looked", contravariant=True)
"""The first argument of a pass: an fx.Graph in ATen operators, or the Reading of Dynamo's graph."""

EVERYWHERE = ("cpu", "cuda")
"""`runs_on` of a pass that serves both devices."""


@dataclass(frozen=True)
class Reject:
    """A pass looked at something and left it alone.

    pass_name: filled in by `run`, so a pass leaves it empty.
    site: the key of a GEMM or the path of a module; "" for the whole graph.
    node: a node's name in the graph; "" for several nodes.
    reason: why, with the offending value.
    """

    pass_name: str
    site: str
    node: str
    reason: str


@dataclass(frozen=True)
class Rewrite:
    """A pass changed the graph at `site`; `did` says how.

    kernel: the callee that the generated code must contain afterwards; `loka.explain` calls a site without it missing.
    `mm[bfloat16]` is a call of `mm` that writes bfloat16. "" makes no claim.
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
    """All that a pass may know besides the graph.

    device: the type ("cpu", "cuda") of the graph's tensors.
    training: whether a Dynamo graph will be differentiated; joint and post_grad graphs show their gradients themselves.
    by_onednn: whether a float32 product of these sizes is faster by oneDNN on this machine.
    """

    plan: Plan
    device: str = "cpu"
    training: bool = False
    by_onednn: Callable[[Sizes], bool] = lambda sizes: False


class Pass(Protocol[Looked]):
    """A frozen dataclass with a name and the devices it serves; calling it rewrites a graph in place.

    A pass is a pure function of graph and context, because records are rebuilt by running it again. It leaves the graph
    linted. Every new node has `meta["val"]`, the module's name and the site of the GEMM it came from.

    In joint and post_grad the graph is an fx.Graph of ATen operators. Before autograd the pass is given a Reading of
    Dynamo's graph: it says what each node computes however it is written. There a pass rewrites through graph/edit.py,
    which keeps the reading up to date. A pass that changes what the model computes has `adapts = True`; it is reported
    even if it did nothing.
    """

    runs_on: ClassVar[tuple[str, ...]]

    @property
    def name(self) -> str: ...

    def __call__(self, looked_at: Looked, context: Context, /) -> PassResult: ...


GraphPass: TypeAlias = Pass[fx.Graph]
DynamoPass: TypeAlias = Pass[Reading]


def run(each: Pass[Looked], looked_at: Looked, context: Context) -> PassResult:
    """Run a pass if it serves the graph's device; if it does not, that is its one refusal."""
    if context.device not in each.runs_on:
        reason = f"serves {' and '.join(each.runs_on)}, and the tensors of this graph are on {context.device}"
        return PassResult(rejects=(Reject(each.name, "", "", reason),))
    result = each(looked_at, context)
    return replace(result, rejects=tuple(replace(reject, pass_name=each.name) for reject in result.rejects))


def rejected(at: fx.Node | Sequence[fx.Node] | str, reason: str) -> Reject:
    """A refusal at a node, at several nodes, or at a module's path; `run` adds the pass's name."""
    if isinstance(at, str):
        return Reject("", at, "", reason)
    if isinstance(at, fx.Node):
        return Reject("", site_of(at), at.name, reason)
    return Reject("", ", ".join(map(site_of, at)), "", reason)


def site_of(node: fx.Node) -> str:
    """The key of the GEMM that the node is or replaced; else the path of its module."""
    return node.meta[SITE_META].key if SITE_META in node.meta else module_name(node)


def apply(
    graph: fx.Graph,
    nodes: Iterable[fx.Node],
    pattern: Callable[[fx.Node], Found | None],
    check: Callable[[Found], str],
    rewrite: Callable[[Found], Rewrite],
) -> PassResult:
    """Apply one rule to these nodes.

    pattern: the match that a node ends, or None.
    check: why the match must stay as it is; "" lets it be rewritten.
    rewrite: changes the graph and says what it did. A node's match is looked for after the rewrites of the nodes before
        it.
    """
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
