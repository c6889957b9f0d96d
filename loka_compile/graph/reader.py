"""Making the reading of a Dynamo graph: run it once on fake tensors, node by node, and ask PyTorch what happened."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from loka_compile import compat
from loka_compile.compat import AtenCall
from loka_compile.graph import aten
from loka_compile.graph.facts import CALLS, Fact, Reading


def read(graph: fx.Graph) -> Reading:
    """The facts of a Dynamo graph whose nodes have `example_value`."""
    reading = Reading(graph)
    inputs = [node.meta.get("example_value") for node in graph.find_nodes(op="placeholder")]
    reading.fakes = compat.in_one_mode(inputs)
    with compat.recording(reading.fakes) as calls:
        _read_all(reading, calls)
    return reading


def _read_all(reading: Reading, calls: list[AtenCall]) -> None:
    """Run all nodes inside `compat.recording`, which appends to `calls`."""
    for node, fake in zip(reading.graph.find_nodes(op="placeholder"), reading.fakes, strict=True):
        reading.add(node, _input(reading, fake))
    for node in reading.graph.nodes:
        if node.op == "get_attr":
            [fake] = compat.in_one_mode([_attribute(reading.graph, node)], like=reading.fakes)
            reading.add(node, _input(reading, fake))
        elif node.op not in ("placeholder", "output"):
            reading.add(node, run(reading, node, calls))


def run(reading: Reading, node: fx.Node, calls: list[AtenCall]) -> Fact:
    """Run one node on the values of its inputs, inside `compat.recording`, which appends to `calls`."""
    expected, region = node.meta.get("example_value"), compat.region_here()
    inputs = node.all_input_nodes
    reached = frozenset[int]().union(*map(reading.memory, inputs))
    if compat.leaves_functorch(node):
        value = _in_mode(reading, expected)
        return Fact(value=value, memory=reached | reading.memory_of(value), writes=reached, region=region)
    if reason := _unreadable(reading, node):
        return Fact(value=expected, memory=reached, writes=reached, region=region, reason=reason)
    values = [reading.value(each) for each in inputs]
    if _is_number(expected) or compat.has_fresh_symbols(expected, values):
        # A size, a number, or a tensor whose size the data decide: Dynamo's own symbols stay, nothing is run again.
        value = _in_mode(reading, expected)
        return Fact(value=value, memory=reading.memory_of(value), region=region)
    start, versions = len(calls), [(x, x._version) for x in _tensors(values) if not x.is_inference()]
    try:
        if compat.calls_graphs(node):
            return _run_graphs(reading, node, calls)
        lay = [*map(reading.memory_of, values)]
        value = call(node, reading.value)
        elsewhere = _lie_elsewhere(reading, inputs, lay)
        memory = reading.memory_of(value)
        memory = memory.union(*(each for each in map(reading.memory, inputs) if each & memory))
        mine = tuple(calls[start:])
        changed = [x for x, version in versions if x._version != version]
        changed += [x for call in mine for x in aten.written_by(call)]
        writes = elsewhere | reading.memory_of(changed) & (reached | memory)
    except Exception as error:  # a node of the user's code may raise anything on fake values
        reason = f"{type(error).__name__}: {error}"[:200]
        return Fact(value=expected, memory=reached, writes=reached, region=region, reason=reason)
    name, given = ("getitem", {}) if _takes(node) else aten.whole(mine)
    if not mine and any(value is each for each in values):  # contiguous() of what is
        name, given = aten.IDENTITY, {"self": value}
    return Fact(name, given, mine, value, memory, writes, region)


def _lie_elsewhere(reading: Reading, inputs: list[fx.Node], lay: list[frozenset[int]]) -> frozenset[int]:
    """The memory that inputs had before this node (`lay`) and have after it, where these differ, as by `set_`. From now
    on it is one, as what is written into the new one is read through nodes that had the old one."""
    joined = frozenset[int]()
    for each, before in zip(inputs, lay, strict=True):
        if (now := reading.memory_of(reading.value(each))) != before:
            reading.join(now | reading.memory(each))
            joined |= reading.memory(each)
    return joined


def _run_graphs(reading: Reading, node: fx.Node, calls: list[AtenCall]) -> Fact:
    """A node that runs graphs of its own (a checkpointed function, the branches of `cond`). Their writes, and the
    inputs they return, count for the node."""
    start, region, writes, memory = len(calls), compat.region_here(), frozenset[int](), frozenset[int]()
    reached = frozenset[int]().union(*map(reading.memory, node.all_input_nodes))
    for graph in [reading.value(each).graph for each in node.all_input_nodes if _is_graph(reading, each)]:
        inner = Reading(graph)
        inputs = [each.meta.get("example_value") for each in graph.find_nodes(op="placeholder")]
        inner.fakes = compat.in_one_mode(inputs, like=reading.fakes)
        _read_all(inner, calls)
        if unread := next((fact.reason for fact in inner.facts.values() if fact.reason), ""):
            raise NotImplementedError(f"inside it {unread}")
        inputs_of_inner = [each for each in inner.facts if each.op in ("placeholder", "get_attr")]
        writes |= reached if any(map(inner.is_written, inputs_of_inner)) else frozenset()
        memory |= reached if any(map(inner.handed_out, inputs_of_inner)) else frozenset()
    value = _in_mode(reading, node.meta["example_value"])
    mine = AtenCall(node.target, (), {}, value), *calls[start:]
    return Fact("", {}, mine, value, memory | reading.memory_of(value), writes, region)


def _in_mode(reading: Reading, value: Any) -> Any:
    """A value as Dynamo found it, turned into a fake tensor of the reading."""
    leaves, spec = tree_flatten(value)
    return tree_unflatten(compat.in_one_mode(leaves, like=reading.fakes), spec)


def _input(reading: Reading, value: Any) -> Fact:
    try:
        return Fact(value=value, memory=reading.memory_of(value))
    except NotImplementedError as error:
        return Fact(value=value, reason=str(error))


def _attribute(graph: fx.Graph, node: fx.Node) -> Any:
    """The value of a get_attr node: a fake tensor, or the module of a subgraph."""
    if "example_value" in node.meta:
        return node.meta["example_value"]
    found: Any = graph.owning_module
    for name in str(node.target).split("."):
        found = getattr(found, name)
    return found


def _unreadable(reading: Reading, node: fx.Node) -> str:
    """Why a node is not run; "" if it is."""
    if compat.switches_functorch(node):
        return f"it enters or leaves a transform of functorch ({node.target.__name__})"
    if node.op not in CALLS:
        return f"it calls a module that was not traced ({node.target})"
    unread = next((each for each in node.all_input_nodes if reading.facts[each].reason), None)
    if unread is not None:
        return f"it reads {unread.name}, which cannot be read"
    if compat.calls_graphs(node) and not any(_is_graph(reading, each) for each in node.all_input_nodes):
        return f"{node.target} does not say what it writes"
    return ""


def _is_graph(reading: Reading, node: fx.Node) -> bool:
    return isinstance(reading.value(node), fx.GraphModule)


def call(node: fx.Node, value: Callable[[fx.Node], Any], target: Any = None) -> Any:
    """The node's result on these values of its inputs. target: call this instead of the node's own target."""
    args, kwargs = map_arg((node.args, node.kwargs), value)
    target = node.target if target is None else target
    if node.op == "call_method":
        return getattr(args[0], target)(*args[1:], **kwargs)
    return target(*args, **kwargs)


def _takes(node: fx.Node) -> bool:
    """Whether the node indexes a tensor or a tuple: Python gives that its meaning, no single operator does."""
    return node.target is operator.getitem or node.target == "__getitem__"


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float | torch.SymInt | torch.SymFloat | torch.SymBool)


def _tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    return [each for each in tree_leaves(list(values)) if isinstance(each, torch.Tensor)]
