"""Writes in place that nobody can tell from new tensors become new tensors, before any pass looks at the graph.

    y = relu_(x)        ->   y = relu(x)
    x.add_(f(norm(x)))  ->   y = add(x, f(norm(x))), and y wherever x was read afterwards

People write activations and residual streams in place to save memory; Inductor saves it by itself. Other writes stay,
because they are seen elsewhere: they go into an input or a buffer, through an index or a view, or into memory that has
views.
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
"""Types of arguments for which no node exists: the call computes such a value itself."""


def write_apart(reading: Reading) -> None:
    """Turn each pointwise write whose memory nothing else reads afterwards into a call that returns a new tensor."""
    for node in sorted({writer for writers in reading.writers.values() for writer in writers}):
        fact = reading.facts[node]
        x = next(iter(reading.args(node)), None)
        if isinstance(x, fx.Node) and len(fact.calls) == 1 and _unnoticed(reading, node, x):
            _rewrite(reading, node, x)


def _unnoticed(reading: Reading, node: fx.Node, x: fx.Node) -> bool:
    """Whether x was made in this graph and nothing but the write's result reads x's memory afterwards."""
    fact, made = reading.facts[node], reading.facts[x]
    if fact.reason or made.reason or fact.random or not fact.writes == fact.memory == made.memory:
        return False
    if x.op not in CALLS or reading.given_in(x) or made.region != fact.region:
        return False  # in another region: a write without gradients leaves x its own, a new tensor would have none
    others = [each for each in reading.facts if each < node and each is not x and reading.memory(each) & fact.memory]
    return all(user < node for each in others for user in each.users)


def _rewrite(reading: Reading, node: fx.Node, x: fx.Node) -> None:
    """Replace the write by its operator without a write, if that gives the same shape, strides and dtype."""
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
    reading.facts[new] = replace(
        reading.facts[new], memory=fact.memory
    )  # nodes made from the result are known by this memory
    for old in (x, node):
        reading.stand_for(new, old)
        for user in [each for each in old.users if not each < new and each not in (new, node)]:
            user.replace_input_with(old, new)
    reading.graph.erase_node(node)
    reading.forget(node)


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    same = same_sizes(a.shape, b.shape) and same_sizes(a.stride(), b.stride())
    return same and (a.dtype, a.device) == (b.dtype, b.device)
