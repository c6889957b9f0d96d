"""Replications: nodes that repeat values along leading dimensions, such as one user's for many candidates.

    wide = replication(narrow)      f(wide) = replication(f(narrow)) for every f that leaves those dimensions alone

`expand`, `broadcast_to`, `repeat`, `repeat_interleave`, picking from a dimension of size one (every valid index is
the same), and a reshape that joins the repeated dimensions with others. Each is kept as a Step that can be applied to
another tensor with the same leading dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from loka_compile.graph.torch_ops import arg, emit, is_tensor, op_of, rank, same, same_sizes, shape, size_arg, value


@dataclass(frozen=True, eq=False)
class Step:
    """One replication. key: equal keys replicate alike. It touches the first `lead_in` dimensions of what it is
    given, and makes them `lead_out`. again(before, v): the same of another tensor, put in front of `before`."""

    key: tuple[Any, ...]
    lead_in: int
    lead_out: int
    again: Callable[[fx.Node, fx.Node], fx.Node]


def step_of(node: fx.Node, lead: int) -> tuple[fx.Node, Step] | None:
    """The replication that a node is, and of what; a reshape counts only behind one, over `lead` dimensions."""
    source = node.args[0] if node.args else None
    if node.op not in ("call_function", "call_method") or not (is_tensor(source) and is_tensor(node)):
        return None
    rule = _RULES.get(op_of(node))
    if rule is not None:
        step = rule(node, source)
    elif lead and op_of(node) in RESHAPES:
        step = _join(node, source, lead)
    else:
        return None
    return None if step is None else (source, step)  # type: ignore[return-value]


RESHAPES = ("reshape", "view", "flatten", "unflatten", "view_as", "reshape_as")


def _expansion(node: fx.Node, source: fx.Node, size_of: Callable[[fx.Node, int], Any]) -> Step | None:
    """A node that is `source.expand(shape of node)`. size_of(before, dim): a size of the node, as an argument."""
    small, large = shape(source), shape(node)
    new = len(large) - len(small)
    changed = [dim for dim in range(len(large)) if dim < new or not same(small[dim - new], large[dim])]
    if not changed:
        return None
    lead_out = changed[-1] + 1
    lead_in = max(lead_out - new, 0)

    def again(before: fx.Node, v: fx.Node) -> fx.Node:
        sizes = [size_of(before, dim) if dim in changed else -1 for dim in range(lead_out)]
        return emit(before, "expand", v, *sizes, *[-1] * (rank(v) - lead_in))

    key = ("expand", _key(small[:lead_in]), _key(large[:lead_out]))
    return Step(key, lead_in, lead_out, again)


def _key(sizes: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(map(str, sizes))


def _expand(node: fx.Node, source: fx.Node) -> Step | None:
    sizes = _varargs(node, "sizes", "size")
    return _expansion(node, source, lambda before, dim: _given(before, node, sizes, dim))


def _expand_as(node: fx.Node, source: fx.Node) -> Step | None:
    return _expansion(node, source, lambda before, dim: size_arg(before, node.args[1], dim))  # type: ignore[arg-type]


def _repeat(node: fx.Node, source: fx.Node) -> Step | None:
    repeats = _varargs(node, "repeats", "size")
    small, new = shape(source), rank(node) - rank(source)
    once = [same(value(each), 1) for each in repeats]
    if len(repeats) != rank(node) or all(once):
        return None
    if all(one or dim < new or same(small[dim - new], 1) for dim, one in enumerate(once)):
        return _expansion(node, source, lambda before, dim: _given(before, node, repeats, dim))
    lead_out = max(dim for dim, one in enumerate(once) if not one) + 1
    lead_out = max(lead_out, new)
    lead_in = lead_out - new
    lead = repeats[:lead_out]

    def again(before: fx.Node, v: fx.Node) -> fx.Node:
        return emit(before, "repeat", v, *lead, *[1] * (rank(v) - lead_in))

    return Step(("repeat", tuple(map(str, map(value, lead))), _key(small[:lead_in])), lead_in, lead_out, again)


def _repeat_interleave(node: fx.Node, source: fx.Node) -> Step | None:
    times, dim = arg(node, 1, "repeats"), arg(node, 2, "dim")
    if not isinstance(dim, int) or isinstance(value(times), torch.Tensor) or times is None:
        return None
    dim %= rank(source)
    if same(shape(source)[dim], 1):
        return _expansion(node, source, lambda before, _: times)
    lead = dim + 1
    key = ("repeat_interleave", str(value(times)), dim, _key(shape(source)[:lead]))
    return Step(key, lead, lead, lambda before, v: emit(before, "repeat_interleave", v, times, dim))


def _pick(node: fx.Node, source: fx.Node) -> Step | None:
    """`x[index]` and `x.index_select(dim, index)` where that dimension is of size one."""
    if op_of(node) == "getitem":
        dim, index = 0, node.args[1]
    else:
        dim, index = arg(node, 1, "dim"), arg(node, 2, "index")
    if not (isinstance(dim, int) and is_tensor(index)) or rank(index) != 1 or value(index).dtype == torch.bool:
        return None
    if rank(source) == 0 or not same(shape(source)[dim], 1):
        return None
    return _expansion(node, source, lambda before, _: size_arg(before, index, 0))


_RULES: dict[str, Callable[[fx.Node, fx.Node], Step | None]] = {
    "expand": _expand, "broadcast_to": _expand, "expand_as": _expand_as, "repeat": _repeat,
    "repeat_interleave": _repeat_interleave, "index_select": _pick, "getitem": _pick,
}  # fmt: skip


def _join(node: fx.Node, source: fx.Node, lead: int) -> Step | None:
    """A reshape of leading dimensions; what stays is at least the last one."""
    small, large = shape(source), shape(node)
    tail = 0
    while tail < min(len(small) - lead, len(large)) and same(small[-1 - tail], large[-1 - tail]):
        tail += 1
    lead_in, lead_out = len(small) - tail, len(large) - tail
    if not (tail and lead_in and lead_out):
        return None

    def again(before: fx.Node, v: fx.Node) -> fx.Node:
        kept = [size_arg(before, v, dim) for dim in range(lead_in, rank(v))]
        lead = [-1] if lead_out == 1 and 0 not in kept else [size_arg(before, node, dim) for dim in range(lead_out)]
        return emit(before, "reshape", v, *lead, *kept)

    return Step(("reshape", _key(small[:lead_in]), _key(large[:lead_out])), lead_in, lead_out, again)


def _varargs(node: fx.Node, *names: str) -> list[Any]:
    """Sizes given one by one, or as one sequence."""
    given: Any = node.args[1:] or next((node.kwargs[name] for name in names if name in node.kwargs), ())
    return list(given[0] if len(given) == 1 and isinstance(given[0], list | tuple) else given)


def _given(before: fx.Node, node: fx.Node, sizes: list[Any], dim: int) -> Any:
    """The size as it was written, or read off the node."""
    written = sizes[dim] if len(sizes) == rank(node) else -1
    if isinstance(written, fx.Node) or isinstance(shape(node)[dim], int):
        return written if isinstance(written, fx.Node) else shape(node)[dim]
    return size_arg(before, node, dim)


def alike(a: tuple[Step, ...], b: tuple[Step, ...]) -> bool:
    return [step.key for step in a] == [step.key for step in b]


def of_one_row(sizes: tuple[Any, ...]) -> bool:
    return same_sizes(sizes, (1,) * len(sizes))
