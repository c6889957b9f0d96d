"""fold_dropout: the gradient of relu-then-dropout is computed from the dropout's result d alone.

    d = mask * relu(z) / (1 - p)       grad_z = mask * (z > 0) * grad / (1 - p) = (d > 0) * grad / (1 - p)

The trick: d is 0 exactly where the mask or the ReLU made it 0, so d > 0 stands for both masks. The next product has
saved d for its own gradient, so neither mask is written, kept or read. The gradient becomes one
loka::norm_quantize_backward, which can also sum over rows for the bias before the ReLU.

It works in training on CUDA, because only raise_norms makes the ReLU an operator. If z is NaN and dropped, grad_z
changes from NaN or 0 to grad / (1 - p); d is NaN there in both cases.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, fx

from loka_compile.graph.nodes import root
from loka_compile.graph.sites import module_name
from loka_compile.graph.splice import hand_over, splice_call
from loka_compile.kernels.norm_quantize.norm_quantize import NormQuantize
from loka_compile.kernels.norm_quantize.norm_quantize_backward import Gradients, NormQuantizeBackward
from loka_compile.passes.base import Context, PassResult, Rewrite, apply

aten, prims = torch.ops.aten, torch.ops.prims
SAME_VALUES = (
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.clone.default,
    aten.alias.default,
)
"""Operators whose result holds their argument's values in the same order."""


@dataclass(frozen=True)
class FoldDropout:
    name: ClassVar[str] = "fold_dropout"
    runs_on: ClassVar[tuple[str, ...]] = ("cuda",)

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        result = apply(graph, NormQuantizeBackward.calls(graph), pattern, check, rewrite)
        if result.rewrites:
            graph.eliminate_dead_code()
        return result


@dataclass(frozen=True)
class Dropout:
    """A match.

    gradient: the ReLU's gradient, a loka::norm_quantize_backward.
    grad: the gradient of the dropout's result.
    mask: boolean, True for kept values.
    gain: 1 / (1 - p).
    results: the forward's nodes mask * relu * gain; a rewrite needs exactly one.
    """

    gradient: fx.Node
    grad: fx.Node
    mask: fx.Node
    gain: float
    results: tuple[fx.Node, ...]


def pattern(gradient: fx.Node) -> Dropout | None:
    """The ReLU's gradient if its incoming gradient is multiplied by a mask and a number, as dropout's backward does."""
    call = NormQuantizeBackward.of(gradient)
    relu = root(call.x, SAME_VALUES)
    if not call.of_relu or NormQuantize.made(relu) is None or call.gain != 1.0:
        return None
    product = _factors(root(call.grad, SAME_VALUES))  # grad * (mask * gain), in either order
    for scaled, grad in (product, product[::-1]) if product else ():
        mask, gain = _times(scaled)
        if mask is not None and mask.target is prims.convert_element_type.default:
            drawn = mask.all_input_nodes[0]
            return Dropout(gradient, grad, drawn, gain, tuple(_forward(relu, drawn, gain)))
    return None


def _factors(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    left, right = node.args[:2] if node.target is aten.mul.Tensor else (None, None)
    return (left, right) if isinstance(left, fx.Node) and isinstance(right, fx.Node) else None


def _times(node: fx.Node) -> tuple[fx.Node | None, float]:
    """(x, number) if the node is x * number, else (None, 1.0)."""
    x, number = node.args[:2] if node.target is aten.mul.Tensor else (None, None)
    return (x, float(number)) if isinstance(x, fx.Node) and isinstance(number, int | float) else (None, 1.0)


def _forward(relu: fx.Node, mask: fx.Node, gain: float) -> Iterator[fx.Node]:
    """The forward's nodes (mask * relu) * gain."""
    for kept in relu.users:
        if {*(_factors(kept) or ())} == {relu, mask}:
            yield from (user for user in kept.users if _times(user) == (kept, gain))


def check(dropout: Dropout) -> str:
    """Why the gradient stays as it is; "" if it can be computed from the dropout's result."""
    dtype = dropout.mask.meta["val"].dtype
    if dtype != torch.bool:
        return f"the gradient is multiplied by {dropout.mask.name} of {dtype}; a dropout's mask is torch.bool"
    if len(dropout.results) != 1:
        results = len(dropout.results)
        return f"expected one product of the ReLU's result and {dropout.mask.name} in the forward, found {results}"
    if dropout.gain < 1:
        return f"kept values are multiplied by {dropout.gain:g} < 1, so a small one may round to 0 and look dropped"
    return ""


def rewrite(dropout: Dropout) -> Rewrite:
    gradient, result = dropout.gradient, dropout.results[0]
    call = NormQuantizeBackward.of(gradient)
    columns = call.x.meta["val"].shape[-1]

    def folded(call: NormQuantizeBackward[Tensor]) -> Gradients[Tensor]:
        return replace(call, grad=call.grad.reshape(-1, columns), x=call.x.reshape(-1, columns))()

    call = replace(call, grad=dropout.grad, x=result, gain=dropout.gain)
    hand_over(gradient, splice_call(gradient, call, folded))
    return Rewrite(module_name(gradient), f"with the dropout behind it, from {result.name} alone")
