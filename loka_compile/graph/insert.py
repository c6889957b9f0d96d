"""Putting a torch function into a Dynamo graph, as the torch functions it calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from loka_compile.graph.edit import INHERITED, take_in
from loka_compile.graph.facts import Reading


def insert(reading: Reading, before: fx.Node, function: Callable[..., Any], *args: Any) -> fx.Node:
    """Trace `function` on `args` (nodes or constants) and insert its calls before `before`; returns the node of its
    result.

    The function is given proxies: it may read their shapes, but not branch on them. New nodes have
    `meta["example_value"]` and the module names of `before`.
    """
    graph = before.graph
    tracer = fx.proxy.GraphAppendingTracer(graph)
    start = before.prev
    with graph.inserting_before(before):
        result = function(*(fx.Proxy(arg, tracer) if isinstance(arg, fx.Node) else arg for arg in args)).node
    node = start.next
    while node is not before:
        node.meta.update({name: before.meta[name] for name in INHERITED if name in before.meta})
        take_in(reading, node, before)
        node = node.next
    return result


def constant(like: fx.Proxy, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Proxy:
    """Inside such a function: call a torch function that is given no tensor, such as arange."""
    return like.tracer.create_proxy("call_function", function, args, kwargs)
