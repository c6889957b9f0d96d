"""GEMMs whose result decides a choice: which expert, which bucket, which item.

If two candidates are nearly equal, a rounded result picks the other one. The output is then not a little off but
something else.

Operators that choose are: indices (topk, sort, argmax, max along a dimension), buckets, floats made integers, and
comparisons whose outcome is used as such. An activation compares too, but its value is continuous where it compares
(`where(x > 0, x, 0.01 * x)`, `x * (x > 0)`). A comparison that only a backward reads is no choice.

The GEMMs found are those before a choice with no other GEMM between, and those before them that nothing else reads:
both linears of a router, but not the layers that the experts read as well.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from operator import getitem
from typing import Any

import torch
from torch import fx

from loka_compile import compat

aten = torch.ops.aten

WITH_INDICES = {
    aten.topk,
    aten.sort,
    aten.max,
    aten.min,
    aten.median,
    aten.nanmedian,
    aten.kthvalue,
    aten.mode,
    aten.cummax,
    aten.cummin,
    aten.max_pool1d_with_indices,
    aten.max_pool2d_with_indices,
}
"""Operators whose second result is indices. Their first, the values, is continuous."""
PICKING = {
    aten.argmax,
    aten.argmin,
    aten.argsort,
    aten.bucketize,
    aten.searchsorted,
    aten.multinomial,
    aten.nonzero,
    aten.histc,
    aten.round,
    aten.floor,
    aten.ceil,
    aten.trunc,
}
"""Operators whose only result is a choice."""
COMPARING = {aten.gt, aten.ge, aten.lt, aten.le, aten.eq, aten.ne}
LOGIC = {
    aten.logical_and,
    aten.logical_or,
    aten.logical_not,
    aten.logical_xor,
    aten.bitwise_and,
    aten.bitwise_or,
    aten.bitwise_not,
    aten.bitwise_xor,
}
PRODUCTS = ("attention", "convolution", "rnn", "lstm", "gru")
"""Parts of the names of operators that multiply like a GEMM."""


def choices(graph: fx.Graph, gemms: Collection[fx.Node]) -> dict[fx.Node, str]:
    """GEMMs of an inference or joint graph that decide a choice -> the name of the operator that chooses."""
    forward = _forward(graph)
    within = {gemm for gemm in gemms if gemm in forward}
    products = {node for node in graph.nodes if node in within or _is_product(node)}
    found: dict[fx.Node, str] = {}
    choosing = [node for node in graph.nodes if node in forward and _chooses(node, forward, products)]
    for node in choosing:
        for source in _before(node, products):
            if source in within:
                found.setdefault(source, _name(node))
    for gemm in reversed([node for node in graph.nodes if node in within and node not in found]) if found else ():
        ends = set(_behind(gemm, forward, products))
        if ends and ends <= found.keys():
            found[gemm] = found[next(iter(ends))]
    return found


def _forward(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that depend on no gradient."""
    behind = set(compat.gradients_of_outputs(graph))
    for node in graph.nodes:
        if not behind.isdisjoint(node.all_input_nodes) and node.op != "output":
            behind.add(node)
    return set(graph.nodes) - behind


def _packet(node: fx.Node) -> Any:
    """The node's operator without its overload; None for other nodes."""
    return getattr(node.target, "overloadpacket", None)


def _name(node: fx.Node) -> str:
    """The plain name of the node's operator."""
    return str(getattr(_packet(node), "__name__", node.name)).rpartition(".")[2]


def _is_product(node: fx.Node) -> bool:
    """Whether the node multiplies like a GEMM, but is none."""
    return node.op == "call_function" and any(name in _name(node) for name in PRODUCTS)


def _chooses(node: fx.Node, forward: set[fx.Node], products: set[fx.Node]) -> bool:
    """Whether the node is a choice that the forward reads."""
    packet = _packet(node)
    users = [user for user in node.users if user in forward]
    if packet in WITH_INDICES:
        second = [user for user in users if user.target is getitem and user.args[1] == 1]
        return any(user in forward for index in second for user in index.users)
    if packet in PICKING:
        return bool(users)
    if packet is torch.ops.prims.convert_element_type:
        return bool(users) and _is_float(node.all_input_nodes[0]) and not _is_float(node) and not _is_bool(node)
    return packet in COMPARING and _tells(node, node, forward, products)


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


def _is_bool(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype == torch.bool


# ---------------------------------------------------------------- comparisons


def _tells(comparison: fx.Node, mask: fx.Node, forward: set[fx.Node], products: set[fx.Node]) -> bool:
    """Whether the outcome of a comparison of floats, or logic on it, is used for more than an activation."""
    left, right = comparison.args[:2]
    if not (isinstance(left, fx.Node) and _is_float(left)):
        return False
    equal, infinite = _packet(comparison) in (aten.eq, aten.ne), isinstance(right, float) and math.isinf(right)
    if infinite or (equal and not isinstance(right, fx.Node)):
        return False  # rounding keeps infinities and zeros
    if _packet(comparison) is aten.le and _packet(left) is aten.relu and right == 0:
        return False  # a ReLU's gradient, which torch.func.grad writes into the forward
    for user in mask.users:
        if user not in forward:
            continue
        if _packet(user) in LOGIC:
            if _tells(comparison, user, forward, products):
                return True
        elif _packet(user) is torch.ops.prims.convert_element_type or user.target is aten.rsub.Scalar:
            if not all(_goes_on(comparison, user, each, products) for each in user.users if each in forward):
                return True
        elif not _goes_on(comparison, mask, user, products):
            return True
    return False


def _goes_on(comparison: fx.Node, mask: fx.Node, user: fx.Node, products: set[fx.Node]) -> bool:
    """Whether `user` gives the same value on both sides of the comparison that made its mask."""
    left, right = comparison.args[:2]
    if user.target is aten.where.self and user.args[0] is mask:
        branches = user.args[1:3]
        if isinstance(right, fx.Node) and not _is_constant(right):
            return {*branches} == {left, right}
        if left in branches:
            other = branches[1] if branches[0] is left else branches[0]
            return not _is_constant(other) or _constant(other) == _constant(right)
        return any(isinstance(each, fx.Node) and left in _before(each, products) for each in branches)
    if _packet(user) is aten.mul and not isinstance(right, fx.Node) and right == 0:
        return any(each is not mask and left in _before(each, products) for each in user.all_input_nodes)
    return False


def _is_constant(value: Any) -> bool:
    return not isinstance(value, fx.Node) or _packet(value) in (aten.full, aten.scalar_tensor)


def _constant(value: Any) -> Any:
    if not isinstance(value, fx.Node):
        return value
    return value.args[1] if _packet(value) is aten.full else value.args[0]


# ---------------------------------------------------------------- ways


def _before(node: fx.Node, products: set[fx.Node]) -> set[fx.Node]:
    """The node, the nodes it is computed from, and the nearest products before it."""
    seen, left = {node}, [node]
    while left:
        for source in left.pop().all_input_nodes:
            if source not in seen:
                seen.add(source)
                if source not in products:
                    left.append(source)
    return seen


def _behind(gemm: fx.Node, forward: set[fx.Node], products: set[fx.Node]) -> Iterator[fx.Node]:
    """The nearest products after a GEMM, and the output if a path reaches it without a product."""
    seen, left = {gemm}, [gemm]
    while left:
        for user in left.pop().users:
            if user in seen or user not in forward:
                continue
            seen.add(user)
            if user in products or user.op == "output":
                yield user
            else:
                left.append(user)
