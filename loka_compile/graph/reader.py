"""Making the one reading of a Dynamo graph: it is run once on fake tensors, node by node, and PyTorch is asked."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from loka_compile import compat
from loka_compile.compat import AtenCall
from loka_compile.graph import aten
from loka_compile.graph.facts import CALLS, Fact, Reading


def read(graph: fx.Graph) -> Reading:
    """The facts of a graph of Dynamo's, whose nodes have `example_value`. A graph that cannot be read gives a reading
    with a reason."""
    reading = Reading(graph)
    for node in graph.nodes:
        if compat.switches_functorch(node):
            reading.reason = f"{node.name} enters or leaves a transform of functorch ({node.target.__name__})"
            return reading
    inputs = graph.find_nodes(op="placeholder")
    fakes = compat.in_one_mode([node.meta.get("example_value") for node in inputs])
    with compat.recording(fakes) as calls:
        for node, fake in zip(inputs, fakes, strict=True):
            reading.add(node, _input(reading, fake))
        for node in graph.nodes:
            if node.op == "get_attr":
                [fake] = compat.in_one_mode([_attribute(graph, node)], like=fakes)
                reading.add(node, _input(reading, fake))
            elif node.op not in ("placeholder", "output"):
                reading.add(node, run(reading, node, calls))
    return reading


def run(reading: Reading, node: fx.Node, calls: list[AtenCall]) -> Fact:
    """Run one node on the values of its inputs, inside of `compat.recording`, which fills `calls`."""
    expected, region = node.meta.get("example_value"), compat.region_here()
    inputs = node.all_input_nodes
    reached = frozenset[int]().union(*map(reading.memory, inputs))
    if reason := _unreadable(reading, node):
        return Fact(value=expected, writes=reached, region=region, reason=reason)
    values = [reading.value(each) for each in inputs]
    if _is_number(expected) or compat.has_fresh_symbols(expected, values):
        # A size, a number, or a tensor whose size the data decide: Dynamo's own symbols stay, nothing is run again.
        return Fact(value=expected, memory=reading.memory_of(expected), region=region)
    start, versions = len(calls), [(x, x._version) for x in _tensors(values) if not x.is_inference()]
    try:
        value = _call(reading, node)
        memory = reading.memory_of(value)
        mine = tuple(calls[start:])
        changed = [x for x, version in versions if x._version != version]
        changed += [x for call in mine for x in aten.written_by(call)]
        writes = reading.memory_of(changed) & (reached | memory)
    except Exception as error:  # a node of the user's code may raise anything on fake values
        return Fact(value=expected, writes=reached, region=region, reason=f"{type(error).__name__}: {error}"[:200])
    name, given = ("getitem", {}) if _takes(node) else aten.whole(mine)
    return Fact(name, given, mine, value, memory, writes, region)


def _input(reading: Reading, value: Any) -> Fact:
    try:
        return Fact(value=value, memory=reading.memory_of(value))
    except NotImplementedError as error:
        return Fact(value=value, reason=str(error))


def _attribute(graph: fx.Graph, node: fx.Node) -> Any:
    """What a get_attr node gives: a tensor's fake value, or the module of a subgraph."""
    if "example_value" in node.meta:
        return node.meta["example_value"]
    found: Any = graph.owning_module
    for name in str(node.target).split("."):
        found = getattr(found, name)
    return found


def _unreadable(reading: Reading, node: fx.Node) -> str:
    """Why a node is not run; empty if it is."""
    if node.op not in CALLS:
        return f"it calls a module that was not traced ({node.target})"
    unread = next((each for each in node.all_input_nodes if reading.facts[each].reason), None)
    if unread is not None:
        return f"it reads {unread.name}: {reading.facts[unread].reason}"
    graphs = any(isinstance(reading.value(each), fx.GraphModule) for each in node.all_input_nodes)
    if compat.calls_graphs(node) and not graphs:
        return f"{node.target} says nothing of what it writes"
    return ""


def _call(reading: Reading, node: fx.Node) -> Any:
    args, kwargs = map_arg((node.args, node.kwargs), reading.value)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _takes(node: fx.Node) -> bool:
    """An index, of a tensor or of a tuple: its meaning is Python's, not that of one operator."""
    return node.target is operator.getitem or node.target == "__getitem__"


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float | torch.SymInt | torch.SymFloat | torch.SymBool)


def _tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    return [each for each in tree_leaves(list(values)) if isinstance(each, torch.Tensor)]
