"""The nodes after a product that its kernel could compute too: a bias, a residual, a norm, an activation, row by row.

Dispatch's model of time asks this before any rewrite: which passes over memory would a fused kernel save, and which
casts could be made in it? Whether a kernel really takes what follows is decided, and reported, by the pass `fuse`.

The trick: nodes are visited in graph order and kept while each value of a row follows from values of that same row. The
epilogue is the longest prefix of the kept nodes that has one way out.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import getitem
from typing import Any, Literal, cast

import torch
from torch import fx

from loka_compile import compat
from loka_compile.graph.nodes import VIEWS, alike, is_backward, is_vector, last_with_views
from loka_compile.kernels.norm_quantize.norm_quantize import NormQuantize
from loka_compile.kernels.norm_quantize.norm_quantize_backward import NormQuantizeBackward

aten, prims = torch.ops.aten, torch.ops.prims
Kind = Literal["", "activation", "norm", "sum"]

REDUCTIONS = {aten.var_mean.correction, aten.mean.dim}
POINTWISE = {
    aten.add.Tensor,
    aten.add.Scalar,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.mul.Scalar,
    aten.div.Tensor,
    aten.pow.Tensor_Scalar,
    aten.rsqrt.default,
    aten.sqrt.default,
    aten.reciprocal.default,
    aten.neg.default,
    aten.exp.default,
    aten.erf.default,
    aten.relu.default,
    aten.sigmoid.default,
    aten.clamp_min.default,
    aten.clamp_max.default,
    prims.convert_element_type.default,
}
LARGEST = 64
"""A decomposed norm with its activation has fewer nodes than this. A longer chain is something else."""


@dataclass(frozen=True)
class Epilogue:
    """end: the node whose value the product's kernel could write.
    kept: the kernel would write the product too, because others read it.
    """

    end: fx.Node
    kind: Kind = ""
    kept: bool = False


def epilogue_of(gemm: fx.Node) -> Epilogue:
    """The longest epilogue of a product. Others may read the norm's input; the backward may read any value of a
    forward."""
    order, columns, forward = [gemm], gemm.meta["val"].shape[-1], not is_backward(gemm)
    inside, seen, todo = {gemm}, set(), sorted(gemm.users)
    while todo and len(order) < LARGEST:
        node = heapq.heappop(todo)
        if node in seen or (forward and is_backward(node)):
            continue
        seen.add(node)
        if _row_by_row(node, inside, columns):
            inside.add(node)
            order.append(node)
            for user in node.users:
                heapq.heappush(todo, user)
    ends = [i for i, node in enumerate(order) if _one_exit(order[: i + 1]) and _as_wide(node, columns)]
    chain = order[: ends[-1] + 1]
    kind = _kind(chain)
    return Epilogue(chain[-1], kind, bool(kind) and any(_exits(chain)))


def _row_by_row(node: fx.Node, inside: set[fx.Node], columns: Any) -> bool:
    """Whether the node could join the epilogue: it computes each row from rows of `inside`, vectors (columns,) or one
    residual."""
    if node.op != "call_function":
        return False
    if NormQuantize.matches(node) or (node.target is getitem and node.args[0] in inside):
        return True
    if NormQuantizeBackward.matches(node) or node.target in (aten.where.self, aten.clone.default, aten.mul.Tensor):
        found = _of_relu(node, inside)
        if found or node.target is not aten.mul.Tensor:
            return found
    if node.target in VIEWS:
        return compat.guard_free(node.meta["val"].shape[-1] == columns)
    if node.target in REDUCTIONS:
        last = node.all_input_nodes[0].meta["val"].dim() - 1
        return node.args[1] in ([last], [-1]) and len([n for n in inside if n.target in REDUCTIONS]) < 2
    if node.target not in POINTWISE:
        return False
    others = [each for each in node.all_input_nodes if each not in inside and not is_vector(each, columns)]
    return not others or (node.target is aten.add.Tensor and len(others) == 1 and _is_residual(others[0], node, inside))


def _of_relu(node: fx.Node, inside: set[fx.Node]) -> bool:
    """Whether the node belongs to the gradient of a ReLU, or of the dropout before it: an op raised by raise_norms, or
    `where(relu <= 0, 0, grad * (mask * gain))` in single nodes."""
    if NormQuantizeBackward.matches(node):
        gradient = NormQuantizeBackward.of(node)
        return gradient.grad in inside and gradient.of_relu
    if node.target is aten.where.self:
        at, zero, grad = cast(tuple[fx.Node, fx.Node, fx.Node], node.args)
        kept = at.target is aten.le.Scalar and _of_product(at.all_input_nodes[0]) and zero.meta["val"].dim() == 0
        return grad in inside and kept
    if node.target is aten.clone.default:
        return node.args[0] in inside and any(each.target is aten.mul.Tensor for each in inside)
    others = [each for each in node.all_input_nodes if each not in inside]
    gain = others[0] if len(others) == 1 < len(node.all_input_nodes) else node
    mask = gain.args[0] if gain.target is aten.mul.Tensor and len(gain.all_input_nodes) == 1 else None
    dropped = isinstance(mask, fx.Node) and mask.target is prims.convert_element_type.default
    return dropped and all(user.target is aten.where.self for user in _past_copies(node))


def _of_product(node: fx.Node) -> bool:
    """Whether the node is the ReLU of a product. The ReLU of a norm does not count: its gradient needs whole rows."""
    while node.target in (aten.relu.default, aten.alias.default, *VIEWS):
        node = node.all_input_nodes[0]
    return node.target in (aten.mm.default, aten.addmm.default)


def _past_copies(node: fx.Node) -> Iterable[fx.Node]:
    """The nodes that read a value directly or through copies."""
    for user in node.users:
        yield from _past_copies(user) if user.target is aten.clone.default else [user]


def _is_residual(other: fx.Node, add: fx.Node, inside: set[fx.Node]) -> bool:
    """Whether `other` is a residual: it has the sum's shape and dtype, and at most a bias was added before it."""
    if not alike(other, add):
        return False
    return not any(_adds_rows(node) for node in inside) and len(_sums(sorted(inside))) == len(inside)


def _adds_rows(node: fx.Node) -> bool:
    """Whether the node adds two tensors of more than one dimension."""
    return node.target is aten.add.Tensor and all(
        isinstance(each, fx.Node) and each.meta["val"].dim() > 1 for each in node.args[:2]
    )


def _sums(chain: list[fx.Node]) -> list[fx.Node]:
    """The product, sums of it, and views of these."""
    sums = [chain[0]]
    for node in chain[1:]:
        made_of = [each for each in node.all_input_nodes if each in chain]
        if node.target in (aten.add.Tensor, *VIEWS) and all(each in sums for each in made_of):
            sums.append(node)
    return sums


def _as_wide(node: fx.Node, columns: Any) -> bool:
    """Whether the node is a tensor with this last dimension."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dim() > 1 and compat.guard_free(value.shape[-1] == columns)


def _one_exit(chain: list[fx.Node]) -> bool:
    """Whether others read only the chain's last value, besides values that a kernel can keep or the backward reads. A
    residual counts only before a norm."""
    forward, sums, kind = not is_backward(chain[0]), _sums(chain), _kind(chain)
    if any(_adds_rows(node) for node in sums) and kind != "norm":
        return False
    kept = last_with_views(sums) if kind == "norm" else ()
    return all(node in kept or (forward and _is_saved(user)) for node, user in _exits(chain))


def _is_saved(node: fx.Node, steps: int = 3) -> bool:
    """Whether the node belongs to the backward, or within a few steps (a cast, say) reaches only the backward."""
    if is_backward(node):
        return True
    return bool(steps and node.users) and all(_is_saved(user, steps - 1) for user in node.users)


def _exits(chain: list[fx.Node]) -> Iterator[tuple[fx.Node, fx.Node]]:
    """(node, reader) for each reader outside the chain, except readers of the last value."""
    return ((node, user) for node in chain[:-1] for user in node.users if user not in chain)


def _kind(chain: list[fx.Node]) -> Kind:
    """The kind of the chain: "" for a bias alone."""
    if any(node.target in REDUCTIONS or _normalizes(node) for node in chain):
        return "norm"
    bias_only = all(node.target in VIEWS or node.target is aten.add.Tensor for node in chain[1:])
    return "" if bias_only else "activation"


def _normalizes(node: fx.Node) -> bool:
    return NormQuantize.matches(node) and NormQuantize.of(node).row.norm != "none"
