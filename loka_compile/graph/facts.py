"""One reading of a Dynamo graph: what each node computes, which memory it reads and what it writes, asked of PyTorch.

Dynamo's graph is written as people write: `x.relu()`, `torch.relu(x)`, `F.relu(x, inplace=True)` are three nodes, `x.T`
is a getattr, and `x[0] = 5.0` writes through a view. Tables of all that cannot be complete, so the graph is run once on
fake tensors. PyTorch says which ATen operators every node calls (`aten.relu`), whose memory its values share, and which
memory it writes. Passes ask the reading and nothing else.

    memory   one storage, as a number. Two nodes share memory if one is a view of the other, or writes into it
    write    a node after which a memory holds other values. A value read before it and one read after it differ
    region   gradients, autocast, inference mode: parts of two regions are not one value

A node that cannot be run on fakes (a call of untraced code, a tensor without storage) has a `reason`; it counts as a
writer of all that it is given, its value as a view of any of it, and no pattern holds it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import fx

from loka_compile.compat import AtenCall, Region
from loka_compile.graph import aten
from loka_compile.graph.memories import Memories
from loka_compile.graph.sizes import known, same

CALLS = ("call_function", "call_method")


@dataclass(frozen=True, eq=False)
class Fact:
    """PyTorch's answers about one node.

    op: the plain name of its one ATen operator, `relu` for aten.relu and aten.relu_; "" if it calls several, or none.
    given: the operator's arguments by name; tensors as fake values.
    calls: all ATen calls it makes.
    value: its result, a fake tensor, a number or a tuple.
    memory: the storages of the result's tensors.
    writes: the storages it changes.
    region: where it runs (gradients, autocast, inference mode).
    reason: why it could not be read; "" if it could.
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
        """Whether each value of the result follows from the values at the same (broadcast) place."""
        return bool(self.calls) and all(map(aten.is_pointwise, self.calls))

    @cached_property
    def random(self) -> bool:
        """Whether the node draws random numbers, as active dropout does."""
        return any(map(aten.draws, self.calls))

    @cached_property
    def permutation(self) -> tuple[int, ...]:
        """The order in which the result has its argument's dimensions; () if the node is no permuting view. Indexing is
        none: `x[:, :1]` of one column is all of x, yet its argument has no name."""
        return aten.permutation(self.calls[0]) if self.given and len(self.calls) == 1 else ()


class Reading:
    """The facts of one graph.

    Passes replace values by equal ones through `edit.py`, which keeps the facts up to date. A pass that changes values
    needs a new reading. fakes: the fake values of the graph's inputs.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.facts: dict[fx.Node, Fact] = {}
        self.writers: dict[int, list[fx.Node]] = {}
        self.fakes: Sequence[Any] = ()
        self._memories = Memories()
        self._stands_for: dict[fx.Node, list[Any]] = {}  # node -> values it stands for, its own first

    # ------------------------------------------------------------ asking

    def op(self, node: Any) -> str:
        """The plain name of the node's one operator; "" for inputs, for several operators and for arguments that are no
        nodes."""
        return self.facts[node].op if isinstance(node, fx.Node) and node in self.facts else ""

    def value(self, node: Any) -> Any:
        """The node's fake value; an argument that is no node is its own value."""
        return self.facts[node].value if isinstance(node, fx.Node) else node

    def is_tensor(self, node: Any) -> bool:
        return isinstance(node, fx.Node) and isinstance(self.value(node), torch.Tensor)

    def shape(self, node: Any) -> tuple[Any, ...]:
        """The sizes: numbers, and symbols for sizes that may change."""
        return tuple(map(known, self.value(node).shape))

    def rank(self, node: Any) -> int:
        return int(self.value(node).dim())

    def arg(self, node: Any, name: str, default: Any = None) -> Any:
        """An argument of the node's operator by its ATen name. Tensors, and sizes that may change, come as nodes."""
        given = self.facts[node].given
        return self.as_nodes(node, given[name]) if name in given else default

    def args(self, node: fx.Node) -> tuple[Any, ...]:
        """All arguments of the node's operator, in ATen's order."""
        return tuple(self.as_nodes(node, each) for each in self.facts[node].given.values())

    def operands(self, node: Any, op: str) -> tuple[Any, Any] | None:
        """(a, b) if the node is exactly `a op b`: without an alpha that scales, without a rounding mode."""
        if self.op(node) != op:
            return None
        given = self.facts[node].given
        plain = given.get("alpha", 1) == 1 and given.get("rounding_mode") is None
        names = [name for name in ("self", "other", "mat2", "exponent") if name in given]
        return (self.arg(node, names[0]), self.arg(node, names[1])) if plain and len(names) == 2 else None

    def memory(self, node: fx.Node) -> frozenset[int]:
        """The storages of the node's tensors."""
        return self.facts[node].memory

    def sources(self, node: fx.Node) -> set[fx.Node]:
        """What the node reads: its inputs, and the nodes that write their memory, before it or after it."""
        read = set(node.all_input_nodes)
        return read.union(*(self.writers.get(memory, ()) for each in read for memory in self.memory(each)))

    def needed(self) -> set[fx.Node]:
        """The nodes on which the output depends, or what is written into an input."""
        found: set[fx.Node] = set()
        for node in reversed(self.graph.nodes):
            if node.op in CALLS and self.facts[node].writes and self.given_in(node):
                found.add(node)
            if node.op == "output" or node in found:
                found |= {each for each in self.sources(node) if each < node}
        return found

    def only_user(self, node: Any) -> fx.Node | None:
        """The node's only reader; None if it has none or several."""
        return next(iter(node.users)) if isinstance(node, fx.Node) and len(node.users) == 1 else None

    def product(self, node: Any) -> tuple[fx.Node, fx.Node] | None:
        """(a, b) if the node is a @ b for matrices or batches of matrices."""
        name = self.op(node)
        found = self.operands(node, name) if name in ("matmul", "mm", "bmm") else None
        return found if found is not None and all(map(self.is_tensor, found)) else None

    def permuted(self, node: Any) -> tuple[fx.Node, tuple[int, ...]] | None:
        """(x, dims) if the node is x with its dimensions in another order, in any spelling."""
        order = self.facts[node].permutation if isinstance(node, fx.Node) and node in self.facts else ()
        return (next(iter(self.args(node))), order) if order else None

    def flipped(self, node: Any) -> fx.Node | None:
        """x if the node is x with its last two dimensions transposed."""
        x, order = self.permuted(node) or (None, ())
        last = len(order) - 1
        return x if order[-2:] == (last, last - 1) and order[:-2] == (*range(last - 1),) else None

    def as_nodes(self, node: fx.Node, given: Any) -> Any:
        """An operator's argument, with nodes in place of their values."""
        if isinstance(given, dict):
            return {name: self.as_nodes(node, each) for name, each in given.items()}
        if isinstance(given, list | tuple):
            return type(given)(self.as_nodes(node, each) for each in given)
        if isinstance(given, torch.Tensor):
            found = [each for each in node.all_input_nodes if any(given is x for x in self._stands_for[each])]
        elif isinstance(given, torch.SymInt | torch.SymFloat):
            numbers = [each for each in node.all_input_nodes if not self.is_tensor(each)]
            found = [each for each in numbers if same(self.value(each), given)]
        else:
            return given
        return found[-1] if found else given

    # ------------------------------------------------------------ writes

    def written(self, memory: Collection[int], since: fx.Node) -> str:
        """The name of a node, `since` or later, that writes to one of these storages; "" if there is none."""
        writers = (writer for each in memory for writer in self.writers.get(each, ()))
        return next((writer.name for writer in writers if not writer < since), "")

    def reason_against(self, nodes: Iterable[Any]) -> str:
        """Why these nodes cannot be replaced by another computation of the same value, at the place of the last one.

        "" if they can: all were read, lie in one region, write nothing and draw no random numbers, and nobody writes
        what they read or give from the first of them on. So autograd may save any of these values.
        """
        calls = sorted({node for node in nodes if isinstance(node, fx.Node) and node.op in CALLS})
        for node in calls:
            fact = self.facts[node]
            if fact.reason:
                return f"{node.name} cannot be read: {fact.reason}"
            if fact.writes:
                return f"{node.name} writes in place"
            if fact.random:
                return f"{node.name} draws random numbers"
            if fact.region != self.facts[calls[0]].region:
                return f"gradients, autocast or inference mode change between {calls[0].name} and {node.name}"
        for each in dict.fromkeys(each for node in calls for each in (*node.all_input_nodes, node)):
            if writer := self.written(self.memory(each), calls[0]):
                return f"{writer} writes in place to {each.name}, or to its memory"
        return ""

    def handed_out(self, node: fx.Node) -> bool:
        """Whether the node's memory leaves the graph."""
        return any(self.memory(node) & self.memory(each) for each in self.graph.output_node().all_input_nodes)

    def given_in(self, node: fx.Node) -> bool:
        """Whether the node's memory is that of an input."""
        inputs = [each for each in self.facts if each.op in ("placeholder", "get_attr")]
        return any(self.memory(node) & self.memory(each) for each in inputs)

    def same(self, a: Any, b: Any) -> bool:
        """Whether two arguments are one value: equal numbers, one node, or the same operator on the same values with no
        write between."""
        if isinstance(a, list | tuple) and isinstance(b, list | tuple):
            return len(a) == len(b) and all(map(self.same, a, b))
        if not (isinstance(a, fx.Node) and isinstance(b, fx.Node)):
            return type(a) is type(b) and bool(a == b)
        if a is b:
            return True
        mine, other = self.facts[a], self.facts[b]
        if not mine.op or mine.op != other.op or mine.given.keys() != other.given.keys() or not mine.given:
            return False
        if _dtype(mine.value) != _dtype(other.value) or self.reason_against((a, b)):
            return False
        return self.same(self.args(a), self.args(b))

    def is_written(self, node: fx.Node) -> bool:
        """Whether a node writes to this node's memory, or that is unknown."""
        return bool(self.facts[node].reason) or any(map(self.writers.get, self.memory(node)))

    def written_inputs(self) -> frozenset[int]:
        """Places of the graph's inputs that it writes, or may write."""
        inputs = enumerate(self.graph.find_nodes(op="placeholder"))
        return frozenset(place for place, node in inputs if self.is_written(node))

    # ------------------------------------------------------------ keeping

    def add(self, node: fx.Node, fact: Fact) -> None:
        """Take in the facts of a new node."""
        self.facts[node] = fact
        self._stands_for[node] = [fact.value]
        for memory in fact.writes:
            self.writers[memory] = sorted([*self.writers.get(memory, ()), node])

    def stand_for(self, new: fx.Node, old: fx.Node) -> None:
        """Let `new` stand for the value of `old` in recorded arguments."""
        self._stands_for[new] += self._stands_for[old]

    def share(self, a: fx.Node, b: fx.Node) -> None:
        """From now on both nodes share their memory, because one replaced the other."""
        self.join(self.memory(a) | self.memory(b))

    def join(self, memories: frozenset[int]) -> None:
        """From now on these are one memory: who has one of them has all."""
        for node, fact in self.facts.items():
            if fact.memory & memories:
                self.facts[node] = replace(fact, memory=fact.memory | memories)

    def forget(self, node: fx.Node) -> None:
        """Drop the facts of a node that is erased from the graph."""
        for memory in self.facts.pop(node).writes:
            self.writers[memory].remove(node)
        del self._stands_for[node]

    def moved(self, graph: fx.Graph, twin: Mapping[fx.Node, fx.Node]) -> Reading:
        """The same reading for a copy of the graph. twin: original node -> its copy."""
        other = Reading(graph)
        other.fakes, other._memories = self.fakes, self._memories.copy()
        other.facts = {twin[node]: fact for node, fact in self.facts.items()}
        other.writers = {memory: [twin[node] for node in nodes] for memory, nodes in self.writers.items()}
        other._stands_for = {twin[node]: [*values] for node, values in self._stands_for.items()}
        return other

    def memory_of(self, value: Any) -> frozenset[int]:
        """The storages of all tensors in a value. Raises NotImplementedError for a tensor without one."""
        return self._memories.of(value)


def _dtype(value: Any) -> Any:
    return value.dtype if isinstance(value, torch.Tensor) else type(value)
