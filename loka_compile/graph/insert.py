"""Putting an ordinary torch function into a Dynamo graph, as the torch functions it calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from loka_compile.graph.edit import INHERITED, take_in
from loka_compile.graph.facts import Reading


def insert(reading: Reading, before: fx.Node, function: Callable[..., Any], *args: Any) -> fx.Node:
    """Write down what `function` calls when given `args` (nodes or constants), in front of `before`.

    The function sees proxies for nodes: it may read their shapes, and may not branch on them. Returns the node of what
    it returns. New nodes have `meta["example_value"]` and the module names of `before`.
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
    """Inside such a function: a call of a torch function without tensors among its arguments, such as arange."""
    return like.tracer.create_proxy("call_function", function, args, kwargs)
