"""What stands behind a product that its own kernel could do: a bias, a residual, a norm, an activation, row by row.

For Dispatch's model of time, which has to know before any rewrite what passes over memory a fused kernel would save,
and which casts could ride in it. Whether a kernel takes what stands there, the pass `fuse` finds out, and says so.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any, Literal, cast

import torch
from torch import fx

from loka_compile import compat
from loka_compile.graph.sizes import same_sizes
from loka_compile.kernels.norm_quantize.norm_quantize import NormQuantize
from loka_compile.kernels.norm_quantize.norm_quantize_backward import NormQuantizeBackward

aten, prims = torch.ops.aten, torch.ops.prims
Kind = Literal["", "activation", "norm", "sum"]

VIEWS: set[Any] = {aten.view.default, aten.reshape.default, aten._unsafe_view.default}
FLIPS: set[Any] = {aten.permute.default, aten.t.default, aten.transpose.int}
WRITTEN: set[Any] = {
    aten.mm.default, aten.addmm.default, aten.bmm.default, aten.cat.default, aten.clone.default, getitem,
}  # fmt: skip
REDUCTIONS = {aten.var_mean.correction, aten.mean.dim}
POINTWISE = {
    aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor,
    aten.pow.Tensor_Scalar, aten.rsqrt.default, aten.sqrt.default, aten.reciprocal.default, aten.neg.default,
    aten.exp.default, aten.erf.default, aten.relu.default, aten.sigmoid.default, aten.clamp_min.default,
    aten.clamp_max.default, prims.convert_element_type.default,
}  # fmt: skip
LARGEST = 64
"""Nodes of a norm and an activation that have been taken apart; more is something else."""


@dataclass(frozen=True)
class Epilogue:
    """end: the node whose value the product's kernel could write in place of the product's; or, with `kept`, beside it,
    as something else reads the product too."""

    end: fx.Node
    kind: Kind = ""
    kept: bool = False


def epilogue_of(gemm: fx.Node) -> Epilogue:
    """As far as everything that reads the product, or what was made of it, goes into one value of the same rows. What a
    norm reads may be read by others as well, and all of it by the backward."""
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


def is_backward(node: fx.Node) -> bool:
    return node.meta.get("partitioner_tag") == "is_backward"


def _row_by_row(node: fx.Node, inside: set[fx.Node], columns: Any) -> bool:
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
    """The gradient of a ReLU, or of a dropout before it: raised, or `where(relu <= 0, 0, grad * (mask * gain))`."""
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
    """A ReLU of a product: of a norm, rows would have to be whole."""
    while node.target in (aten.relu.default, aten.alias.default, *VIEWS):
        node = node.all_input_nodes[0]
    return node.target in (aten.mm.default, aten.addmm.default)


def _past_copies(node: fx.Node) -> Iterable[fx.Node]:
    for user in node.users:
        yield from _past_copies(user) if user.target is aten.clone.default else [user]


def is_vector(node: fx.Node, columns: Any) -> bool:
    """One number a column."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dim() == 1 and compat.guard_free(value.shape[0] == columns)


def alike(node: fx.Node, other: fx.Node) -> bool:
    """Two tensors of one shape and dtype."""
    a, b = node.meta.get("val"), other.meta.get("val")
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        return False
    return a.dtype == b.dtype and same_sizes(a.shape, b.shape)


def last_with_views(nodes: Sequence[fx.Node]) -> Sequence[fx.Node]:
    """The last of these that is no view, and the views of it that follow."""
    return nodes[max(i for i, node in enumerate(nodes) if node.target not in VIEWS) :]


def _is_residual(other: fx.Node, add: fx.Node, inside: set[fx.Node]) -> bool:
    """Whether `other` is a residual: it has the sum's shape and dtype, and only a bias was added to the product
    before."""
    if not alike(other, add):
        return False
    return not any(_adds_rows(node) for node in inside) and len(_sums(sorted(inside))) == len(inside)


def _adds_rows(node: fx.Node) -> bool:
    """A sum with a residual."""
    return node.target is aten.add.Tensor and all(
        isinstance(each, fx.Node) and each.meta["val"].dim() > 1 for each in node.args[:2]
    )


def _sums(chain: list[fx.Node]) -> list[fx.Node]:
    """The product, with all that is added to it, and views of it."""
    sums = [chain[0]]
    for node in chain[1:]:
        made_of = [each for each in node.all_input_nodes if each in chain]
        if node.target in (aten.add.Tensor, *VIEWS) and all(each in sums for each in made_of):
            sums.append(node)
    return sums


def _as_wide(node: fx.Node, columns: Any) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dim() > 1 and compat.guard_free(value.shape[-1] == columns)


def _one_exit(chain: list[fx.Node]) -> bool:
    """Whether all but the last are read within the chain only, or are what may be kept. A residual without a norm is no
    epilogue of ours."""
    forward, sums, kind = not is_backward(chain[0]), _sums(chain), _kind(chain)
    if any(_adds_rows(node) for node in sums) and kind != "norm":
        return False
    kept = last_with_views(sums) if kind == "norm" else ()
    return all(node in kept or (forward and _is_saved(user)) for node, user in _exits(chain))


def _is_saved(node: fx.Node, steps: int = 3) -> bool:
    """Whether it is the backward's, or was made for nothing else in a few steps (a cast, say)."""
    if is_backward(node):
        return True
    return bool(steps and node.users) and all(_is_saved(user, steps - 1) for user in node.users)


def _exits(chain: list[fx.Node]) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Who reads what of the chain, but for its last value."""
    return ((node, user) for node in chain[:-1] for user in node.users if user not in chain)


def _kind(chain: list[fx.Node]) -> Kind:
    if any(node.target in REDUCTIONS or _normalizes(node) for node in chain):
        return "norm"
    bias_only = all(node.target in VIEWS or node.target is aten.add.Tensor for node in chain[1:])
    return "" if bias_only else "activation"


def _normalizes(node: fx.Node) -> bool:
    return NormQuantize.matches(node) and NormQuantize.of(node).row.norm != "none"


def sum_beside(gemm: fx.Node, from_memory: bool = False) -> fx.Node | None:
    """The sum over the rows of what a product's left operand is the transpose of: a bias's gradient beside its
    weight's. A raised gradient of a norm or an activation sums itself. from_memory: only of what is written in any
    case; of anything else Inductor may sum on the way, or will, once it is raised."""
    flip = gemm.all_input_nodes[0]
    if flip.target not in FLIPS or flip.meta["val"].dim() != 2:
        return None
    grad = flip.all_input_nodes[0]
    while grad.target in VIEWS:
        grad = grad.all_input_nodes[0]
    if NormQuantizeBackward.made(grad) is not None:
        return None
    if from_memory and not (grad.op == "placeholder" or grad.target in WRITTEN):
        return None
    return next((node for node in past_views(grad) if sums_rows(node)), None)


def past_views(node: fx.Node) -> Iterator[fx.Node]:
    """What reads a tensor, views of it looked through."""
    for user in node.users:
        if user.target in VIEWS:
            yield from past_views(user)
        else:
            yield user


def sums_rows(node: fx.Node) -> bool:
    """A sum that leaves one number a column, in the dtype of what it sums."""
    if node.target is not aten.sum.dim_IntList or node.kwargs:
        return False
    rank = node.all_input_nodes[0].meta["val"].dim()
    return sorted(dim % rank for dim in cast(list[int], node.args[1])) == list(range(rank - 1))


def read_by_products_only(node: fx.Node, is_left: Callable[[fx.Node, fx.Node], bool]) -> bool:
    """Whether nothing but GEMMs reads a value, as left operands; views of it count as itself."""

    def reads(value: fx.Node, users: Iterable[fx.Node]) -> bool:
        return all(reads(user, user.users) if user.target in VIEWS else is_left(user, value) for user in users)

    return bool(node.users) and reads(node, node.users)
