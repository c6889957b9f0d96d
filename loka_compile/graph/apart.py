"""Writes in place that nobody could tell from new tensors become new tensors, before any pass looks at the graph.

    y = relu_(x)        ->   y = relu(x)
    x.add_(f(norm(x)))  ->   y = add(x, f(norm(x))), and y wherever x was read afterwards

Activations in place and residual streams are written so, to save memory; Inductor saves it by itself. What stays is
seen elsewhere: it goes into an input or a buffer, through an index, through a view, or into memory that has views.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from loka_compile.graph import aten
from loka_compile.graph.edit import drop, emit
from loka_compile.graph.facts import CALLS, Reading
from loka_compile.graph.sizes import same_sizes

_VALUES = (torch.Tensor, torch.SymInt, torch.SymFloat)
"""Types of arguments that no node gives: the call makes such a value itself."""


def write_apart(reading: Reading) -> None:
    """Let every pointwise write into memory that only its own line sees make a tensor of its own."""
    for node in sorted({writer for writers in reading.writers.values() for writer in writers}):
        fact = reading.facts[node]
        x = next(iter(reading.args(node)), None)
        if isinstance(x, fx.Node) and len(fact.calls) == 1 and _unnoticed(reading, node, x):
            _rewrite(reading, node, x)


def _unnoticed(reading: Reading, node: fx.Node, x: fx.Node) -> bool:
    """Whether the node writes into x, a tensor made in this graph, of which nothing else is read afterwards."""
    fact, made = reading.facts[node], reading.facts[x]
    if fact.reason or made.reason or fact.random or not fact.writes == fact.memory == made.memory:
        return False
    if x.op not in CALLS or reading.given_in(x) or made.region != fact.region:
        return False  # of another region: without gradients x keeps those that it had, and a new tensor has none
    others = [each for each in reading.facts if each < node and each is not x and reading.memory(each) & fact.memory]
    return all(user < node for each in others for user in each.users)


def _rewrite(reading: Reading, node: fx.Node, x: fx.Node) -> None:
    [call] = (fact := reading.facts[node]).calls
    args, kwargs = reading.as_nodes(node, call.args), reading.as_nodes(node, call.kwargs)
    op = aten.without_write(call)
    if op is None or any(isinstance(each, _VALUES) for each in tree_leaves((args, kwargs))):
        return
    new = emit(reading, node, op, *args, **kwargs)
    if not _alike(reading.value(new), reading.value(node)):
        drop(reading, [new])
        return
    new.meta = {**node.meta, "example_value": new.meta["example_value"]}
    reading.facts[new] = replace(reading.facts[new], memory=fact.memory)  # which all that is made of it has as well
    for old in (x, node):
        reading.stand_for(new, old)
        for user in [each for each in old.users if not each < new and each not in (new, node)]:
            user.replace_input_with(old, new)
    reading.graph.erase_node(node)
    reading.forget(node)


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    same = same_sizes(a.shape, b.shape) and same_sizes(a.stride(), b.stride())
    return same and (a.dtype, a.device) == (b.dtype, b.device)
