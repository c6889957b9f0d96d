"""Writing into a Dynamo graph, its reading kept up to date: new calls, equal values exchanged, unused ones erased."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import fx

from loka_compile import compat
from loka_compile.graph import aten
from loka_compile.graph.facts import CALLS, Reading
from loka_compile.graph.reader import run
from loka_compile.graph.sizes import same_sizes

INHERITED = ("nn_module_stack", "stack_trace", "source_fn_stack")
_OF_STRIDES = {"as_strided", "view_as_real", "view_as_complex", "unfold"}
"""Views that are of strides: they are given them, or want them to be certain ones."""


def emit(reading: Reading, before: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """A new call in front of `before`, in its region: of a function, or of a method where the target is a name."""
    graph = reading.graph
    with graph.inserting_before(before):
        call = graph.call_method if isinstance(target, str) else graph.call_function
        node = call(target, args, kwargs)
    node.meta = {name: before.meta[name] for name in INHERITED if name in before.meta}
    take_in(reading, node, before)
    return node


def take_in(reading: Reading, node: fx.Node, before: fx.Node) -> None:
    """Read a node that a pass put in front of `before`."""
    at = reading.facts[before].region if before in reading.facts else None
    with compat.recording(reading.fakes) as calls, compat.inside(at or compat.region_here()):
        fact = run(reading, node, calls)
    if fact.reason:
        raise AssertionError(f"a pass wrote {node.format_node()}, which does not run: {fact.reason}")
    reading.add(node, fact)
    node.meta["example_value"] = fact.value


def size_arg(reading: Reading, before: fx.Node, node: fx.Node, dim: int) -> Any:
    """A size to put into a call: the number, or a node that reads it where it is symbolic."""
    size = reading.shape(node)[dim]
    return size if isinstance(size, int) else emit(reading, before, "size", node, dim)


def replace(reading: Reading, old: fx.Node, new: fx.Node, alone: bool = False) -> fx.Node:
    """Give `old`'s users another tensor of the same values; drop `old`, and unless `alone` all that only it used.

    Where the strides differ and that can be seen (it leaves the graph, say), the tensor is laid out as `old` was. Not
    for memory that is written (Reading.reason_against). Returns the tensor in `old`'s place.
    """
    have, want = reading.value(new), reading.value(old)
    if not same_sizes(have.stride(), want.stride()):
        readers = _readers(reading, old)
        if any(_sees_strides(reading, user) for user in readers):
            new = _laid_out(reading, old, new)
        for user in readers:
            if user.op == "call_method" and user.target == "view" and reading.op(user) == "view":
                user.target = "reshape"
    new.meta = {**old.meta, "example_value": new.meta["example_value"]}
    reading.stand_for(new, old)
    inputs = old.all_input_nodes
    old.replace_all_uses_with(new)
    reading.graph.erase_node(old)
    reading.forget(old)
    drop(reading, () if alone else inputs)
    return new


def drop(reading: Reading, nodes: Iterable[fx.Node]) -> None:
    """Erase those of the nodes that nobody uses and that do nothing besides giving a value, and what only they used."""
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if node in reading.facts and not node.users and _only_gives_a_value(reading, node):
            inputs = node.all_input_nodes
            reading.graph.erase_node(node)
            reading.forget(node)
            todo += inputs


def _only_gives_a_value(reading: Reading, node: fx.Node) -> bool:
    fact = reading.facts[node]
    silent = not (fact.reason or fact.writes or fact.random)
    return node.op in CALLS and silent and not node.is_impure(impure_random=False)


def _readers(reading: Reading, node: fx.Node) -> list[fx.Node]:
    """The users of a node and of its views."""
    found: dict[fx.Node, None] = {}
    todo = list(node.users)
    while todo:
        user = todo.pop()
        if user not in found:
            found[user] = None
            if user in reading.facts and reading.memory(user) & reading.memory(node):
                todo += user.users
    return list(found)


def _sees_strides(reading: Reading, user: fx.Node) -> bool:
    """Whether it matters to the user how its tensors are laid out, not only what they are."""
    if user not in reading.facts or reading.facts[user].reason or reading.op(user) in _OF_STRIDES:
        return True
    to_bytes = reading.op(user) == "view" and "dtype" in reading.facts[user].given
    return to_bytes or any(aten.is_foreign(call) for call in reading.facts[user].calls)


def _laid_out(reading: Reading, old: fx.Node, new: fx.Node) -> fx.Node:
    """The tensor `new` with the strides of `old`: dense, in some order of the dimensions."""
    strides = reading.value(old).stride()
    order = sorted(range(len(strides)), key=lambda dim: -compat.concrete(strides[dim]))
    if order == sorted(order):
        return emit(reading, old, "contiguous", new)
    dense = emit(reading, old, "contiguous", emit(reading, old, "permute", new, *order))
    return emit(reading, old, "permute", dense, *(order.index(dim) for dim in range(len(order))))
