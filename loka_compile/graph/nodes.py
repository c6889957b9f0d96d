"""Questions about single nodes of a graph in ATen operators: what a node is, what lies behind its views, and who
reads it past views."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import fx

from loka_compile import compat
from loka_compile.graph.sizes import same_sizes

aten = torch.ops.aten

VIEWS: set[Any] = {aten.view.default, aten.reshape.default, aten._unsafe_view.default}
FLIPS: set[Any] = {aten.permute.default, aten.t.default, aten.transpose.int}
LAYOUT: set[Any] = {
    *VIEWS,
    *FLIPS,
    aten.expand.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.default,
    aten.clone.default,
}
"""Operators that change how a tensor lies, and none of its values."""


def is_backward(node: fx.Node) -> bool:
    """Whether the partitioner will put the node of a joint graph into the backward."""
    return node.meta.get("partitioner_tag") == "is_backward"


def is_vector(node: fx.Node, columns: Any) -> bool:
    """Whether the node is a tensor (columns,)."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dim() == 1 and compat.guard_free(value.shape[0] == columns)


def alike(node: fx.Node, other: fx.Node) -> bool:
    """Whether both nodes are tensors of one shape and dtype."""
    a, b = node.meta.get("val"), other.meta.get("val")
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        return False
    return a.dtype == b.dtype and same_sizes(a.shape, b.shape)


def last_with_views(nodes: Sequence[fx.Node]) -> Sequence[fx.Node]:
    """The last of these nodes that is no view, and the views after it."""
    return nodes[max(i for i, node in enumerate(nodes) if node.target not in VIEWS) :]


def past_views(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes that read a tensor directly or through views."""
    for user in node.users:
        if user.target in VIEWS:
            yield from past_views(user)
        else:
            yield user


def sums_rows(node: fx.Node) -> bool:
    """Whether the node sums over all dimensions but the last and keeps the dtype."""
    if node.target is not aten.sum.dim_IntList or node.kwargs:
        return False
    rank = node.all_input_nodes[0].meta["val"].dim()
    return sorted(dim % rank for dim in cast(list[int], node.args[1])) == list(range(rank - 1))


def read_by_products_only(node: fx.Node, is_left: Callable[[fx.Node, fx.Node], bool]) -> bool:
    """Whether only GEMMs read the value or views of it, as left operands."""

    def reads(value: fx.Node, users: Iterable[fx.Node]) -> bool:
        return all(reads(user, user.users) if user.target in VIEWS else is_left(user, value) for user in users)

    return bool(node.users) and reads(node, node.users)


def root(node: Any, through: Collection[Any] = LAYOUT) -> Any:
    """The tensor behind views, permutes and contiguous copies, or behind the operators in `through`."""
    while isinstance(node, fx.Node) and node.op == "call_function" and node.target in through:
        node = node.args[0]
    return node


def unflip(node: fx.Node) -> tuple[fx.Node, bool]:
    """(the matrix behind transposes of the last two dimensions, whether their number is odd)."""
    flipped = False
    while node.op == "call_function":
        if _is_flip(node):
            flipped = not flipped
        elif not _keeps_shape(node):
            break
        node = node.all_input_nodes[0]
    return node, flipped


def _keeps_shape(node: fx.Node) -> bool:
    """Whether the node is an expand or view to the shape its input has; `matmul` of batches leaves such nodes."""
    if node.target not in (aten.expand.default, aten.view.default, aten.reshape.default):
        return False
    return same_sizes(node.all_input_nodes[0].meta["val"].shape, node.meta["val"].shape)


def _is_flip(node: fx.Node) -> bool:
    """Whether the node transposes the last two dimensions and nothing else."""
    if node.target not in FLIPS:
        return False
    dims, moved = node.all_input_nodes[0].meta["val"].dim(), cast(tuple[Any, ...], node.args[1:])
    if node.target is aten.t.default:
        return dims == 2
    if node.target is aten.permute.default:
        return dims >= 2 and [d % dims for d in moved[0]] == [*range(dims - 2), dims - 1, dims - 2]
    return dims >= 2 and {d % dims for d in moved} == {dims - 2, dims - 1}
