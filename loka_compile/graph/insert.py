"""Putting an ordinary torch function into a Dynamo graph, as the torch functions it calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from loka_compile import compat

_INHERITED = ("nn_module_stack", "source_fn_stack", "stack_trace")


def insert(before: fx.Node, function: Callable[..., Any], *args: Any) -> fx.Node:
    """Write down what `function` calls when given `args` (nodes or constants), in front of `before`.

    The function sees proxies for nodes: it may read their shapes, and may not branch on them. Returns the node of what
    it returns. New nodes have `meta["example_value"]` and the module names of `before`.
    """
    graph = before.graph
    tracer = fx.proxy.GraphAppendingTracer(graph)
    start = before.prev
    with graph.inserting_before(before):
        result = function(*(fx.Proxy(arg, tracer) if isinstance(arg, fx.Node) else arg for arg in args)).node
    inherited = {name: before.meta[name] for name in _INHERITED if name in before.meta}
    node = start.next
    while node is not before:
        node.meta.update(inherited, example_value=example_value(node))
        node = node.next
    return result


def constant(like: fx.Proxy, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Proxy:
    """Inside such a function: a call of a torch function without tensors among its arguments, such as arange."""
    return like.tracer.create_proxy("call_function", function, args, kwargs)


def example_value(node: fx.Node) -> Any:
    """What a node of a Dynamo graph gives for the fake values of its arguments."""
    args, kwargs = map_arg((node.args, node.kwargs), lambda each: each.meta["example_value"])
    fakes = [n.meta["example_value"] for n in node.graph.nodes if isinstance(n.meta.get("example_value"), torch.Tensor)]
    with compat.running_fakes(fakes[:1]):
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]
