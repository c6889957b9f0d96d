"""Replications: nodes that repeat values along leading dimensions, such as one user's values for many candidates.

    wide = replication(narrow)      f(wide) = replication(f(narrow)) for every f that leaves those dimensions alone

They are `expand`, `broadcast_to`, `repeat`, `repeat_interleave`, indexing a dimension of size one (every valid index
picks the same value), and a reshape that joins repeated dimensions with others. Each becomes a Step, which can be
applied to any tensor with the same leading dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from loka_compile.graph.edit import emit, size_arg
from loka_compile.graph.facts import Reading
from loka_compile.graph.reshapes import is_reshape
from loka_compile.graph.sizes import same, same_sizes


@dataclass(frozen=True, eq=False)
class Step:
    """One replication: it turns the first `lead_in` dimensions of its input into `lead_out` dimensions.

    key: equal keys replicate alike. again(before, v): apply it to another tensor v, with new nodes before `before`.
    """

    key: tuple[Any, ...]
    lead_in: int
    lead_out: int
    again: Callable[[fx.Node, fx.Node], fx.Node]


def step_of(reading: Reading, node: fx.Node, lead: int) -> tuple[fx.Node, Step] | None:
    """(source, step) if the node is a replication of source, else None. lead: the replicated dimensions of source so
    far; a reshape is a replication only if lead > 0."""
    rule = _RULES.get(reading.op(node))
    if rule is None and not (lead and is_reshape(reading, node)):
        return None
    source = node.args[0] if reading.op(node) == "getitem" else reading.arg(node, "self")
    if not (reading.is_tensor(source) and reading.is_tensor(node)):
        return None
    step = rule(reading, node, source) if rule is not None else _join(reading, node, source, lead)
    return None if step is None else (source, step)


def _expansion(reading: Reading, node: fx.Node, source: fx.Node, size_of: Callable[[fx.Node, int], Any]) -> Step | None:
    """The step of a node that equals `source.expand(its shape)`. size_of(before, dim): that size of the node, as an
    argument."""
    small, large = reading.shape(source), reading.shape(node)
    new = len(large) - len(small)
    changed = [dim for dim in range(len(large)) if dim < new or not same(small[dim - new], large[dim])]
    if not changed:
        return None
    lead_out = changed[-1] + 1
    lead_in = max(lead_out - new, 0)

    def again(before: fx.Node, v: fx.Node) -> fx.Node:
        sizes = [size_of(before, dim) if dim in changed else -1 for dim in range(lead_out)]
        return emit(reading, before, "expand", v, *sizes, *[-1] * (reading.rank(v) - lead_in))

    key = ("expand", _key(small[:lead_in]), _key(large[:lead_out]))
    return Step(key, lead_in, lead_out, again)


def _key(sizes: tuple[Any, ...]) -> tuple[str, ...]:
    """Sizes in a form that can be compared, whether known or symbolic."""
    return tuple(map(str, sizes))


def _expand(reading: Reading, node: fx.Node, source: fx.Node) -> Step | None:
    sizes = reading.arg(node, "size")
    return _expansion(reading, node, source, lambda before, dim: _given(reading, before, node, sizes, dim))


def _expand_as(reading: Reading, node: fx.Node, source: fx.Node) -> Step | None:
    other = reading.arg(node, "other")
    return _expansion(reading, node, source, lambda before, dim: size_arg(reading, before, other, dim))


def _repeat(reading: Reading, node: fx.Node, source: fx.Node) -> Step | None:
    repeats = reading.arg(node, "repeats")
    small, new = reading.shape(source), reading.rank(node) - reading.rank(source)
    once = [same(reading.value(each), 1) for each in repeats]
    if all(once) or any(isinstance(each, torch.SymInt) for each in repeats):
        return None
    if all(one or dim < new or same(small[dim - new], 1) for dim, one in enumerate(once)):
        return _expansion(reading, node, source, lambda before, dim: _given(reading, before, node, repeats, dim))
    lead_out = max(new, *(dim + 1 for dim, one in enumerate(once) if not one))
    lead_in = lead_out - new
    lead = repeats[:lead_out]

    def again(before: fx.Node, v: fx.Node) -> fx.Node:
        return emit(reading, before, "repeat", v, *lead, *[1] * (reading.rank(v) - lead_in))

    return Step(("repeat", tuple(map(str, map(reading.value, lead))), _key(small[:lead_in])), lead_in, lead_out, again)


def _repeat_interleave(reading: Reading, node: fx.Node, source: fx.Node) -> Step | None:
    times, dim = reading.arg(node, "repeats"), reading.arg(node, "dim")
    symbolic = isinstance(times, fx.Node) and isinstance(reading.value(times), torch.SymInt)
    if not isinstance(dim, int) or not (symbolic or isinstance(times, int)):
        return None
    dim %= reading.rank(source)
    if same(reading.shape(source)[dim], 1):
        return _expansion(reading, node, source, lambda before, _: times)
    lead = dim + 1
    key = ("repeat_interleave", str(reading.value(times)), dim, _key(reading.shape(source)[:lead]))
    return Step(key, lead, lead, lambda before, v: emit(reading, before, "repeat_interleave", v, times, dim))


def _pick(reading: Reading, node: fx.Node, source: fx.Node) -> Step | None:
    """`x[index]` or `x.index_select(dim, index)` along a dimension of size one."""
    if reading.op(node) == "getitem":
        dim, index = 0, node.args[1]
    else:
        dim, index = reading.arg(node, "dim"), reading.arg(node, "index")
    if not reading.is_tensor(index) or reading.rank(index) != 1 or reading.value(index).dtype == torch.bool:
        return None
    if reading.rank(source) == 0 or not same(reading.shape(source)[dim], 1):
        return None
    return _expansion(reading, node, source, lambda before, _: size_arg(reading, before, index, 0))


_RULES: dict[str, Callable[[Reading, fx.Node, fx.Node], Step | None]] = {
    "expand": _expand,
    "broadcast_to": _expand,
    "expand_as": _expand_as,
    "repeat": _repeat,
    "repeat_interleave": _repeat_interleave,
    "index_select": _pick,
    "getitem": _pick,
}


def _join(reading: Reading, node: fx.Node, source: fx.Node, lead: int) -> Step | None:
    """A reshape that joins leading dimensions and leaves at least the last one alone."""
    small, large = reading.shape(source), reading.shape(node)
    tail = 0
    while tail < min(len(small) - lead, len(large)) and same(small[-1 - tail], large[-1 - tail]):
        tail += 1
    lead_in, lead_out = len(small) - tail, len(large) - tail
    if not (tail and lead_in and lead_out):
        return None

    def again(before: fx.Node, v: fx.Node) -> fx.Node:
        kept = [size_arg(reading, before, v, dim) for dim in range(lead_in, reading.rank(v))]
        flat = lead_out == 1 and 0 not in kept
        lead = [-1] if flat else [size_arg(reading, before, node, dim) for dim in range(lead_out)]
        return emit(reading, before, "reshape", v, *lead, *kept)

    return Step(("reshape", _key(small[:lead_in]), _key(large[:lead_out])), lead_in, lead_out, again)


def _given(reading: Reading, before: fx.Node, node: fx.Node, sizes: list[Any], dim: int) -> Any:
    """The size as it was written in the call if that is a node; else read off the node's value."""
    written = sizes[dim] if len(sizes) == reading.rank(node) else -1
    return written if isinstance(written, fx.Node) else size_arg(reading, before, node, dim)


def alike(a: tuple[Step, ...], b: tuple[Step, ...]) -> bool:
    """Whether the two chains of steps replicate alike."""
    return [step.key for step in a] == [step.key for step in b]


def of_one_row(sizes: tuple[Any, ...]) -> bool:
    """Whether all sizes are 1."""
    return same_sizes(sizes, (1,) * len(sizes))
