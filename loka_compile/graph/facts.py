"""One reading of a Dynamo graph: what each node computes, which memory it reads and what it writes, asked of PyTorch.

Dynamo's graph is written as people write: `x.relu()`, `torch.relu(x)`, `F.relu(x, inplace=True)` are three nodes, `x.T`
is a getattr, and `x[0] = 5.0` writes through a view. Tables of all that cannot be complete, so the graph is run once on
fake tensors. PyTorch says which ATen operators every node calls (`aten.relu`), whose memory its values share, and which
memory it writes. Passes ask the reading and nothing else.

    memory   one storage, as a number. Two nodes share memory if one is a view of the other, or writes into it
    write    a node after which a memory holds other values. What was read before it and what is read after differ
    region   gradients, autocast, inference mode: parts of two regions are not one value

A node that cannot be run on fakes (a call of untraced code, a tensor without storage) has a `reason`; it counts as a
writer of all that it is given, and no pattern holds it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from loka_compile import compat
from loka_compile.compat import AtenCall, Region
from loka_compile.graph import aten

CALLS = ("call_function", "call_method")


@dataclass(frozen=True, eq=False)
class Fact:
    """What PyTorch says of one node.

    op: the one operator's plain name, `relu` for aten.relu and aten.relu_; empty where the node is several, or none.
    given: the operator's arguments by name, tensors as the fake values they were.
    value: what the node gives: a fake tensor, a number, a tuple. memory: that of its tensors.
    writes: the memory that the node changes. reason: why it could not be read; empty if it could.
    """

    op: str = ""
    given: dict[str, Any] = field(default_factory=dict)
    calls: tuple[AtenCall, ...] = ()
    value: Any = None
    memory: frozenset[int] = frozenset()
    writes: frozenset[int] = frozenset()
    region: Region | None = None
    reason: str = ""

    @cached_property
    def pointwise(self) -> bool:
        """Each value of the result follows from the values at its place (broadcast)."""
        return bool(self.calls) and all(map(aten.is_pointwise, self.calls))

    @cached_property
    def random(self) -> bool:
        """It draws random numbers: dropout that is on, for one."""
        return any(map(aten.draws, self.calls))


class Reading:
    """The facts of one graph. They hold until a pass changes the graph."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.facts: dict[fx.Node, Fact] = {}
        self.writers: dict[int, list[fx.Node]] = {}
        self.reason = ""
        self._numbers: dict[int, int] = {}
        self._storages: list[Any] = []  # kept, so that no other storage gets the address of one of them
        self._names: dict[fx.Node, set[int]] = {}

    # ------------------------------------------------------------ asking

    def op(self, node: Any) -> str:
        """The plain name of the node's one operator; "" for inputs, for several operators and for what is no node."""
        return self.facts[node].op if isinstance(node, fx.Node) and node in self.facts else ""

    def value(self, node: Any) -> Any:
        """The fake value of a node; what is no node is itself."""
        if not isinstance(node, fx.Node):
            return node
        return self.facts[node].value if node in self.facts else node.meta.get("example_value")

    def arg(self, node: fx.Node, name: str, default: Any = None) -> Any:
        """An argument of the node's operator by its ATen name, tensors as nodes."""
        fact = self.facts[node]
        if name not in fact.given:
            return default
        return self._as_nodes(node, fact.given[name])

    def args(self, node: fx.Node) -> tuple[Any, ...]:
        """All arguments of the node's operator in ATen's order, tensors as nodes."""
        return tuple(self._as_nodes(node, each) for each in self.facts[node].given.values())

    def memory(self, node: fx.Node) -> frozenset[int]:
        return self.facts[node].memory if node in self.facts else frozenset()

    def _as_nodes(self, node: fx.Node, given: Any) -> Any:
        if isinstance(given, list | tuple):
            return type(given)(self._as_nodes(node, each) for each in given)
        if not isinstance(given, torch.Tensor):
            return given
        found = [each for each in node.all_input_nodes if id(given) in self._names.get(each, ())]
        return found[-1] if found else given

    # ------------------------------------------------------------ writes

    def written(self, memory: Collection[int], since: fx.Node, until: fx.Node | None = None) -> str:
        """Who writes to one of these memories, `since` included and `until` not; empty if nobody does."""
        for each in memory:
            for writer in self.writers.get(each, ()):
                if not writer < since and (until is None or writer < until):
                    return writer.name
        return ""

    def reason_against(self, nodes: Collection[fx.Node], last: fx.Node) -> str:
        """Why the value of `last` cannot be computed in one piece, at its place, from what `nodes` read.

        nodes: the parts of the pattern, `last` among them or not. Empty if it can: all of them were read, lie in one
        region and write nothing, nobody writes in between to what they read, and nobody writes into the result.
        """
        nodes = [*dict.fromkeys((*nodes, last))]
        region = self.facts[last].region
        since: dict[int, fx.Node] = {}
        for node in nodes:
            fact = self.facts[node]
            if node.op not in CALLS:
                continue
            if fact.reason:
                return f"{node.name} cannot be read: {fact.reason}"
            if fact.writes:
                return f"{node.name} writes in place"
            if fact.region != region:
                return f"gradients, autocast or inference mode are switched between {node.name} and {last.name}"
            for each in node.all_input_nodes:
                for memory in self.memory(each):
                    since[memory] = min(since.get(memory, node), node)
        for memory, first in since.items():
            if writer := self.written([memory], first, last):
                return f"{writer} writes in place to what {first.name} reads"
        return self.kept_apart(last, nodes)

    def kept_apart(self, last: fx.Node, nodes: Collection[fx.Node] = ()) -> str:
        """Why another tensor of the same values cannot stand for `last`: somebody writes to its memory afterwards, or
        it leaves the graph as a view of an input, which the caller may write to."""
        if writer := self.written(self.memory(last), last):
            return f"{writer} writes in place to {last.name}, or to its memory"
        inputs = {memory for node in self.graph.nodes if node.op in ("placeholder", "get_attr")
                  for memory in self.memory(node)}
        leaving = {memory for node in self.graph.output_node().all_input_nodes for memory in self.memory(node)}
        if self.memory(last) & inputs & leaving:
            return f"{last.name} is a view of an input and leaves the graph"
        return ""

    def same(self, a: Any, b: Any) -> bool:
        """Whether two arguments are one value: a node and itself, or the same operator on the same values, which
        nobody writes to in between. Numbers are compared."""
        if not (isinstance(a, fx.Node) and isinstance(b, fx.Node)):
            return type(a) is type(b) and bool(a == b)
        if a is b:
            return True
        first, second = sorted((a, b))
        mine, other = self.facts[first], self.facts[second]
        if not mine.op or mine.op != other.op or mine.region != other.region:
            return False
        if mine.random or mine.writes or other.writes or mine.reason or other.reason:
            return False
        if mine.given.keys() != other.given.keys() or _dtype(mine.value) != _dtype(other.value):
            return False
        read = {memory for each in first.all_input_nodes for memory in self.memory(each)}
        if self.written(read | mine.memory, first, second):
            return False
        return all(self._same_args(*pair) for pair in zip(self.args(first), self.args(second), strict=True))

    def _same_args(self, a: Any, b: Any) -> bool:
        if isinstance(a, list | tuple) and isinstance(b, list | tuple):
            return len(a) == len(b) and all(map(self._same_args, a, b))
        return self.same(a, b)

    def written_inputs(self) -> frozenset[int]:
        """Places of the graph's inputs whose memory it writes."""
        inputs = enumerate(self.graph.find_nodes(op="placeholder"))
        return frozenset(place for place, node in inputs if any(map(self.writers.get, self.memory(node))))

    # ------------------------------------------------------------ reading

    def add(self, node: fx.Node, fact: Fact, names: Collection[int] = ()) -> None:
        """Keep what was found of a node. names: ids of the values it stands for besides its own."""
        self.facts[node] = fact
        self._names[node] = {id(fact.value), *names}
        for memory in fact.writes:
            self.writers[memory] = sorted([*self.writers.get(memory, ()), node])

    def names(self, node: fx.Node) -> frozenset[int]:
        return frozenset(self._names.get(node, ()))

    def drop(self, node: fx.Node) -> None:
        """Forget a node that is erased from the graph."""
        self.facts.pop(node, None)
        self._names.pop(node, None)
        for writers in self.writers.values():
            if node in writers:
                writers.remove(node)

    def memory_of(self, value: Any) -> frozenset[int]:
        """The memory of all tensors in a value. Raises NotImplementedError for tensors without any (sparse ones)."""
        found = set()
        for each in tree_leaves(value):
            if isinstance(each, torch.Tensor):
                if compat.hides_its_memory(each):
                    raise NotImplementedError(f"a {type(each).__name__} hides its memory")
                storage = each.untyped_storage()
                number = self._numbers.setdefault(storage._cdata, len(self._numbers))
                if number == len(self._storages):
                    self._storages.append(storage)
                found.add(number)
        return frozenset(found)


def _dtype(value: Any) -> Any:
    return value.dtype if isinstance(value, torch.Tensor) else type(value)
