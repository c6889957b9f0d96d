"""Changing a Dynamo graph while its reading stays up to date: add calls, replace values by equal ones, erase dead
nodes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import fx

from loka_compile import compat
from loka_compile.graph import strides
from loka_compile.graph.facts import CALLS, Reading
from loka_compile.graph.reader import run
from loka_compile.graph.sizes import same_sizes

INHERITED = ("nn_module_stack", "stack_trace", "source_fn_stack")


def emit(reading: Reading, before: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """Add a call before `before`, in its region. target: a function, an operator, or a method's name."""
    graph = reading.graph
    with graph.inserting_before(before):
        call = graph.call_method if isinstance(target, str) else graph.call_function
        node = call(target, args, kwargs)
    node.meta = {name: before.meta[name] for name in INHERITED if name in before.meta}
    take_in(reading, node, before)
    return node


def take_in(reading: Reading, node: fx.Node, before: fx.Node) -> None:
    """Read a node that a pass put before `before`. Raises AssertionError if it does not run on fake tensors."""
    at = reading.facts[before].region if before in reading.facts else None
    with compat.recording(reading.fakes) as calls, compat.inside(at or compat.region_here()):
        fact = run(reading, node, calls)
    if fact.reason:
        raise AssertionError(f"a pass wrote {node.format_node()}, which does not run: {fact.reason}")
    reading.add(node, fact)
    node.meta["example_value"] = fact.value


def size_arg(reading: Reading, before: fx.Node, node: fx.Node, dim: int) -> Any:
    """A size as an argument of a call: the number, or a new node that reads it if it is symbolic."""
    size = reading.shape(node)[dim]
    return size if isinstance(size, int) else emit(reading, before, "size", node, dim)


def replace(reading: Reading, old: fx.Node, new: fx.Node, alone: bool = False) -> fx.Node:
    """Let `new` replace `old`, which has the same values; returns the tensor that took its place.

    `old` is erased, and with `alone=False` also the nodes that only it used. A node made for this takes the module's
    name from `old`; one that others read already keeps its own, by which its sites are named. If the strides differ and
    a later node could tell, `new` is copied into the strides of `old`. The caller has checked that nobody writes the
    memory (Reading.reason_against).
    """
    have, want = reading.value(new), reading.value(old)
    if not same_sizes(have.stride(), want.stride()):
        lies = strides.otherwise(reading, old, new)
        if lies is None:
            new = _laid_out(reading, old, new)
        else:
            _follow(reading, lies, new)
    if not new.users:
        new.meta = {**old.meta, "example_value": new.meta["example_value"]}
    reading.stand_for(new, old)
    inputs = old.all_input_nodes
    old.replace_all_uses_with(new)
    reading.graph.erase_node(old)
    reading.forget(old)
    drop(reading, () if alone else inputs)
    return new


def drop(reading: Reading, nodes: Iterable[fx.Node]) -> None:
    """Erase those of the nodes that nothing reads and that have no other effect; then the nodes that only they read."""
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if node in reading.facts and not node.users and _only_gives_a_value(reading, node):
            inputs = node.all_input_nodes
            reading.graph.erase_node(node)
            reading.forget(node)
            todo += inputs


def _only_gives_a_value(reading: Reading, node: fx.Node) -> bool:
    """Whether erasing the node changes nothing but its value."""
    fact = reading.facts[node]
    silent = not (fact.reason or fact.writes or fact.random)
    return node.op in CALLS and silent and not node.is_impure(impure_random=False)


def _follow(reading: Reading, lies: strides.Lies, new: fx.Node) -> None:
    """Let nodes that read other strides cope: x.view becomes x.reshape, and copies that became views share memory."""
    for node in lies.readers:
        if strides.is_plain_view(reading, node):
            node.target = "reshape"
    for node in lies.joined:
        reading.share(node, new)


def _laid_out(reading: Reading, old: fx.Node, new: fx.Node) -> fx.Node:
    """`new` copied into the strides of `old`, which are dense in some order of the dimensions."""
    strides = reading.value(old).stride()
    order = sorted(range(len(strides)), key=lambda dim: -compat.concrete(strides[dim]))
    if order == sorted(order):
        return emit(reading, old, "contiguous", new)
    dense = emit(reading, old, "contiguous", emit(reading, old, "permute", new, *order))
    return emit(reading, old, "permute", dense, *(order.index(dim) for dim in range(len(order))))
