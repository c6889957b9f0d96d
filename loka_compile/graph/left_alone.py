"""Graphs that loka hands to Inductor as they are, and why: what cannot be read, run once more, or lowered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from loka_compile import compat
from loka_compile.graph.reader import read


def reason_to_leave(graph: fx.Graph, inputs: Sequence[Any], training: bool, online: bool) -> str:
    """Why a Dynamo graph with these inputs goes to Inductor as written; empty if it need not.

    online: the plan is to be learned from calls, with the code changing on the way.
    """
    for node, value in zip(graph.find_nodes(op="placeholder"), inputs, strict=False):
        if isinstance(value, list | tuple | dict):
            return f"{node.name} is a {type(value).__name__}, as compiled autograd hands over its inputs"
        if isinstance(value, torch.SymInt) and not compat.has_value(value):
            return f"the size {node.name} has no value yet (it is unbacked), and nothing can be measured without one"
        if isinstance(value, torch.Tensor):
            if value.layout is not torch.strided or compat.hides_its_memory(value):
                kind = type(value).__name__ if value.layout is torch.strided else str(value.layout)
                return f"{node.name} is a {kind} tensor, whose memory cannot be told"
            if not all(map(compat.has_value, value.shape)):
                return f"{node.name} has a size without a value yet (it is unbacked): {tuple(value.shape)}"
    if online and torch.are_deterministic_algorithms_enabled():
        return (
            "deterministic algorithms are asked for, and a plan that is learned while it runs depends on times and on "
            "what this process has seen; give a profile or a plan"
        )
    if training and any(_looks_up(node) for node in graph.nodes):
        for node, fact in read(graph).facts.items():
            if fact.op in ("embedding", "embedding_bag") and fact.given.get("sparse"):
                return f"the gradient of {node.name}'s table is sparse"
    return ""


def _looks_up(node: fx.Node) -> bool:
    """Cheap to ask: without a table there is no sparse gradient, and the graph need not be read for it."""
    return node.op == "call_function" and "embedding" in getattr(node.target, "__name__", "")
