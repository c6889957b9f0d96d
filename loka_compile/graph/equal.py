"""Nodes that compute the same value. AOTAutograd keeps one of them when it partitions a joint graph.

A plan has to know all of them: if one is lowered and an equal one is not, they are no longer equal, and both run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from operator import getitem
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg


def equal(nodes: Iterable[fx.Node]) -> list[list[fx.Node]]:
    """Groups of two or more nodes that compute the same value. The nodes belong to one functional ATen graph."""
    nodes = list(nodes)
    if not nodes:
        return []
    first: dict[Any, fx.Node] = {}  # computation -> the first node that does it
    same: dict[fx.Node, fx.Node] = {}
    for node in nodes[0].graph.nodes:
        same[node] = first.setdefault(_computation(node, same), node) if _is_pure(node) else node
    groups = defaultdict(list)
    for node in nodes:
        groups[same[node]].append(node)
    return [group for group in groups.values() if len(group) > 1]


def _is_pure(node: fx.Node) -> bool:
    """Whether equal inputs give equal results: the node draws no random numbers and writes nothing."""
    if node.op != "call_function" or node.target is getitem:
        return node.op == "call_function"
    schema = getattr(node.target, "_schema", None)
    drawn = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return schema is not None and not schema.is_mutable and not drawn


def _computation(node: fx.Node, same: dict[fx.Node, fx.Node]) -> Any:
    args, kwargs = map_arg((node.args, node.kwargs), lambda each: same[each])
    return node.target, _hashable(args), _hashable(kwargs)


def _hashable(value: Any) -> Any:
    """A key for an argument that tells 1, 1.0 and True apart."""
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    if isinstance(value, dict):
        return tuple((key, _hashable(each)) for key, each in value.items())
    if isinstance(value, slice):
        return "slice", *map(_hashable, (value.start, value.stop, value.step))
    return type(value), value
