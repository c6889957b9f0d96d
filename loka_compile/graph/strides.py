"""Who can tell that a tensor has other strides than before, if its values are the same.

Strides are handed on by views, pointwise operators and casts. Dropout fills its mask in the order of memory;
`contiguous` and `reshape` copy or do not; `view` is refused. The trick: everything that follows the tensor is run once
more on the new fake value, as far as results have other strides too, and PyTorch says what comes out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from loka_compile import compat
from loka_compile.graph import aten
from loka_compile.graph.facts import Reading
from loka_compile.graph.reader import call
from loka_compile.graph.sizes import same_sizes

_OF_STRIDES = {"as_strided", "view_as_real", "view_as_complex", "unfold"}
"""Views whose meaning depends on strides."""
_ASKING = {"stride", "is_contiguous", "storage_offset", "untyped_storage"}


@dataclass(frozen=True)
class Lies:
    """readers: nodes that read a tensor with other strides. joined: nodes that copied before and now return a view."""

    readers: tuple[fx.Node, ...]
    joined: tuple[fx.Node, ...]


def otherwise(reading: Reading, old: fx.Node, new: fx.Node) -> Lies | None:
    """The nodes whose tensors get other strides once `new` stands for `old`; None if a node could tell."""
    values: dict[fx.Node, Any] = {old: reading.value(new)}
    readers: list[fx.Node] = []
    joined: list[fx.Node] = []
    with compat.recording(reading.fakes):
        node = old.next
        while node.op != "root":
            changed = [each for each in node.all_input_nodes if each in values]
            if changed:
                value = None if _tells(reading, node) else _again(reading, node, values)
                if value is None:
                    return None
                shared, shares = _is_shared(reading, node, changed), _shares(value, [values[each] for each in changed])
                if shared != shares and _is_seen(reading, node, (*changed, new)):
                    return None
                readers.append(node)
                joined += [node] if shares and not shared else []
                if not _lie_alike(value, reading.value(node)):
                    if reading.facts[node].random:
                        return None
                    values[node] = value
            node = node.next
    return Lies(tuple(readers), tuple(joined))


def is_plain_view(reading: Reading, node: fx.Node) -> bool:
    """Whether the node is x.view(sizes), which x.reshape(sizes) can replace."""
    is_view = node.op == "call_method" and node.target == "view" and reading.op(node) == "view"
    return is_view and "dtype" not in reading.facts[node].given


def _tells(reading: Reading, node: fx.Node) -> bool:
    """Whether the node's result depends on its inputs' strides, not only on their values."""
    if node not in reading.facts or reading.facts[node].reason or compat.leaves_functorch(node):
        return True
    if node.target in _ASKING or reading.op(node) in _OF_STRIDES:
        return True
    if reading.op(node) == "view" and "dtype" in reading.facts[node].given:
        return True
    calls = reading.facts[node].calls
    return any(aten.is_foreign(each) or torch.Tag.inplace_view in getattr(each.op, "tags", ()) for each in calls)


def _again(reading: Reading, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """The node's result with these values for its inputs; None if it does not run."""
    value_of = lambda each: values[each] if each in values else reading.value(each)  # noqa: E731
    before = reading.value(node)
    if before is None or compat.has_fresh_symbols(before, [value_of(each) for each in node.all_input_nodes]):
        return before if before is not None else ()
    target = "reshape" if is_plain_view(reading, node) else node.target
    try:
        with compat.inside(reading.facts[node].region or compat.region_here()):
            return call(node, value_of, target)
    except Exception:  # a view that does not fit; the user's code may raise anything
        return None


def _is_shared(reading: Reading, node: fx.Node, inputs: list[fx.Node]) -> bool:
    return any(reading.memory(node) & reading.memory(each) for each in inputs)


def _shares(value: Any, inputs: list[Any]) -> bool:
    return bool(_storages(value) & _storages(inputs))


def _storages(value: Any) -> set[int]:
    return {each.untyped_storage()._cdata for each in tree_leaves(value) if isinstance(each, torch.Tensor)}


def _is_seen(reading: Reading, node: fx.Node, sources: tuple[fx.Node, ...]) -> bool:
    """Whether it matters that a copy became a view or a view a copy: one of them is written, or leaves the graph
    together with the other."""
    if any(map(reading.is_written, (node, *sources))):
        return True
    if not reading.handed_out(node):
        return False
    memory = frozenset[int]().union(*map(reading.memory, (node, *sources)))
    outs = [each for each in reading.graph.output_node().all_input_nodes if reading.memory(each) & memory]
    return len(outs) > 1 or any(map(reading.given_in, (node, *sources)))


def _lie_alike(value: Any, before: Any) -> bool:
    pairs = zip(tree_leaves(value), tree_leaves(before), strict=False)
    return all(same_sizes(a.stride(), b.stride()) for a, b in pairs if isinstance(a, torch.Tensor))
