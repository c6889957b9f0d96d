"""fold_dropout: the gradient of a ReLU and the dropout behind it, taken from the dropout's result alone.

    d = mask * relu(z) / (1 - p)       grad_z = mask * (z > 0) * grad / (1 - p) = (d > 0) * grad / (1 - p)

d is 0 where either was, and the product that follows has saved it: neither mask is written, kept or read any more, and
the gradient is one loka::norm_quantize_backward, of whose sums over rows the bias before it has use. ReLUs are those
that raise_norms made an op of, so this works in training on CUDA. Where z is NaN and dropped, grad_z was 0 times NaN or
0 and is grad / (1 - p); d is NaN there in any case.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import getitem
from typing import Any, ClassVar

import torch
from torch import fx

from loka_compile.graph.sites import module_name, root
from loka_compile.graph.splice import splice
from loka_compile.kernels.norm_quantize_backward import norm_quantize_backward
from loka_compile.passes.base import Context, PassResult, Rewrite, apply
from loka_compile.passes.lower import NORM, NORM_BACKWARD

aten, prims = torch.ops.aten, torch.ops.prims
SAME_VALUES = (
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.clone.default, aten.alias.default,
)  # fmt: skip
"""Operators whose result has their argument's values, in the same order."""


@dataclass(frozen=True)
class FoldDropout:
    name: ClassVar[str] = "fold_dropout"
    runs_on: ClassVar[tuple[str, ...]] = ("cuda",)

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        nodes = graph.find_nodes(op="call_function", target=NORM_BACKWARD)
        result = apply(graph, nodes, pattern, check, rewrite)
        if result.rewrites:
            graph.eliminate_dead_code()
        return result


@dataclass(frozen=True)
class Dropout:
    """gradient: of the ReLU, a loka::norm_quantize_backward node. grad: of the dropout's result. gain: 1 / (1 - p).
    results: what the forward made with the same mask and gain of the ReLU's result; one, if all is as usual."""

    gradient: fx.Node
    grad: fx.Node
    mask: fx.Node
    gain: float
    results: tuple[fx.Node, ...]


def pattern(gradient: fx.Node) -> Dropout | None:
    """The gradient of a ReLU whose result went through a dropout."""
    _, x, _, weight, bias, norm, _, activation, *_ = gradient.args
    relu = root(x, SAME_VALUES)
    raised = relu.target is getitem and relu.args[0].target is NORM  # type: ignore[union-attr]
    if (norm, activation, weight, bias) != ("none", "relu", None, None) or not raised or gradient.args[-1] != 1.0:
        return None
    product = _factors(root(gradient.args[0], SAME_VALUES))  # mask * gain, or one after the other
    for scaled, grad in (product, product[::-1]) if product else ():
        mask, gain = _times(scaled)
        if mask is not None and mask.target is prims.convert_element_type.default:
            mask = mask.args[0]  # type: ignore[assignment]
            return Dropout(gradient, grad, mask, gain, tuple(_forward(relu, mask, gain)))
    return None


def _factors(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    if node.target is aten.mul.Tensor and all(isinstance(each, fx.Node) for each in node.args):
        return node.args  # type: ignore[return-value]
    return None


def _times(node: fx.Node) -> tuple[fx.Node | None, float]:
    """(x, number) of x * number."""
    if node.target is aten.mul.Tensor and isinstance(node.args[1], int | float):
        return node.args[0], float(node.args[1])  # type: ignore[return-value]
    return None, 1.0


def _forward(relu: fx.Node, mask: fx.Node, gain: float) -> Iterator[fx.Node]:
    """mask * relu * gain"""
    for kept in relu.users:
        if {*(_factors(kept) or ())} == {relu, mask}:
            yield from (user for user in kept.users if _times(user) == (kept, gain))


def check(dropout: Dropout) -> str:
    """Why the gradient stays as it is; empty if it is taken from the dropout's result."""
    dtype = dropout.mask.meta["val"].dtype
    if dtype != torch.bool:
        return f"it is multiplied by {dropout.mask.name} of {dtype}, which is no mask"
    if len(dropout.results) != 1:
        return f"the forward has {len(dropout.results)} products of the ReLU's result and {dropout.mask.name}, not one"
    if dropout.gain < 1:
        return f"what is kept is multiplied by {dropout.gain:g}, and may round to 0"
    return ""


def rewrite(dropout: Dropout) -> Rewrite:
    gradient, result = dropout.gradient, dropout.results[0]
    columns = gradient.args[1].meta["val"].shape[-1]  # type: ignore[union-attr]
    _, _, statistics, *rest = gradient.args[:-1]

    def folded(grad: Any, x: Any, statistics: Any) -> Any:
        flat = grad.reshape(-1, columns), x.reshape(-1, columns)
        return norm_quantize_backward(*flat, statistics, *rest, dropout.gain)

    made = splice(gradient, folded, [dropout.grad, result, statistics])
    for user in list(gradient.users):
        user.replace_all_uses_with(made[user.args[1]])
    return Rewrite(module_name(gradient), f"with the dropout behind it, from {result.name} alone")
