"""raise_gdpa: attention with an element-wise activation where softmax would stand becomes loka::gdpa, one kernel.

    act(q k^T * inside) v * outside     q (B, H, Tq, D), k and v (B, H, Tk, D); or without H

Scores are as many as queries times keys; in one kernel they never reach memory, forward or backward. Works on CUDA and
in 16 bits, what the kernel is for: on a CPU Inductor fuses the parts as well. Two products with something else between
them are no candidates; what looks like one and is none stays, with the reason.
Source: Kunlun's PFFN, whose weights are made for each request (papers.md 2.2.2); HSTU's attention without softmax.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import fx

from loka_compile.graph import torch_ops as ops
from loka_compile.graph.reading import called, multiplied, only_user, same, value, written
from loka_compile.graph.sites import module_name
from loka_compile.graph.torch_ops import emit, same_sizes, shape
from loka_compile.kernels.gdpa import Gdpa
from loka_compile.kernels.gdpa_kernel import WIDEST
from loka_compile.kernels.gdpa_reference import LEAK
from loka_compile.kernels.norm_quantize import HALVES
from loka_compile.passes.base import Context, PassResult, Rewrite, apply

NAMES = ("gelu", "relu", "silu", "hard_swish", "leaky_relu")


@dataclass(frozen=True)
class RaiseGdpa:
    name: ClassVar[str] = "raise_gdpa"
    runs_on: ClassVar[tuple[str, ...]] = ("cuda",)

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        return apply(graph, graph.nodes, pattern, check, rewrite)


@dataclass(frozen=True)
class Attention:
    """act(q turned * inside) v * outside. last: whose value is replaced; between: the nodes from q to it."""

    q: fx.Node
    turned: fx.Node
    v: fx.Node
    last: fx.Node
    between: tuple[fx.Node, ...]
    activation: str
    inside: float
    outside: float


def pattern(node: fx.Node) -> Attention | None:
    """The attention whose second product this node is, with the factor behind it."""
    second = multiplied(node)
    if second is None:
        return None
    weights, outside, factors = _scaled(second[0])
    activation, scores, activations = _activated(weights)
    scores, inside, inner = _scaled(scores)
    first = multiplied(scores)
    if not activation or first is None:
        return None
    found = Attention(*first, second[1], node, (*factors, *activations, *inner, scores), activation, inside, outside)
    user = only_user(node)
    if inside == 1.0 and user is not None and (behind := _factor(user)):
        return replace(found, last=user, between=(*found.between, node), outside=outside * behind[1])
    return found


def check(found: Attention) -> str:
    """Why it stays as it is; empty if it is raised."""
    q, turned, v = (value(each) for each in (found.q, found.turned, found.v))
    if not (q.dim() == turned.dim() == v.dim() and q.dim() in (3, 4)):
        return f"its operands have {q.dim()}, {turned.dim()} and {v.dim()} dimensions, not 3 or 4 each"
    k = turned.mT
    if not same_sizes(k.shape, v.shape) or not same_sizes((*q.shape[:-2], q.shape[-1]), (*k.shape[:-2], k.shape[-1])):
        return f"queries {tuple(q.shape)}, keys {tuple(k.shape)} and values {tuple(v.shape)} do not agree"
    if q.dtype not in HALVES or not q.dtype == k.dtype == v.dtype:
        return f"it is of {q.dtype}, {k.dtype} and {v.dtype}; the kernel is for bfloat16 or float16"
    width = shape(found.q)[-1]
    if not isinstance(width, int) or width > WIDEST:
        return f"its heads are {width} wide, and the kernel's {WIDEST} at most"
    if others := [each.name for each in found.between if only_user(each) is None]:
        return f"{others[0]} is read elsewhere too"
    for each in (found.q, found.turned, found.v, *found.between, found.last):
        if name := written(each):
            return f"{each.name} is written to in place ({name})"
    return ""


def rewrite(found: Attention) -> Rewrite:
    last, heads = found.last, value(found.q).dim() == 4
    k = emit(last, "transpose", found.turned, -2, -1)
    q, k, v = (each if heads else emit(last, "unsqueeze", each, 1) for each in (found.q, k, found.v))
    of_q, of_k = (ops.size_arg(last, each, 2) for each in (q, k))
    inside = found.inside != 1.0
    factor = found.inside if inside else found.outside
    call = Gdpa(q, k, v, None, None, of_q, of_k, found.activation, factor, inside, window=-1)
    out = emit(last, call.target(), *call.args)
    if not heads:
        out = emit(last, "squeeze", out, 1)
    if inside and found.outside != 1.0:  # gdpa has one factor
        out = emit(last, "mul", out, found.outside)
    out = ops.replace_part(last, out, (found.q, found.turned, found.v))
    return Rewrite(module_name(out), f"one op: attention by {found.activation}")


# ---------------------------------------------------------------- the parts


def _factor(node: Any) -> tuple[fx.Node, float] | None:
    """(x, c) of x * c or x / c, c a number."""
    name = called(node)
    if name not in ("mul", "div") or len(node.args) != 2 or node.kwargs:
        return None
    x, c = node.args if isinstance(node.args[0], fx.Node) or name == "div" else node.args[::-1]
    if not isinstance(x, fx.Node) or not isinstance(c, int | float) or c == 0:
        return None
    return x, float(c) if name == "mul" else 1.0 / c


def _scaled(node: Any) -> tuple[Any, float, tuple[fx.Node, ...]]:
    """(x, c, its node) of x * c; c is 1 and there is no node where nothing is multiplied."""
    found = _factor(node)
    return (node, 1.0, ()) if found is None else (*found, (node,))


def _activated(node: Any) -> tuple[str, Any, tuple[fx.Node, ...]]:
    """(gdpa's name of the activation, what it is of, its nodes); the name is empty if it is none."""
    name = called(node)
    if name == "square" or (name == "pow" and node.args[1:] in ((2,), (2.0,))) or _twice(node):
        inner, x, nodes = _activated(node.args[0])
        return ("relu_squared" if inner == "relu" else ""), x, (node, *nodes)
    if name not in NAMES or not node.args:
        return "", node, ()
    if name == "gelu":
        form = node.kwargs.get("approximate", node.args[1] if len(node.args) > 1 else "none")
        return ("gelu_approx" if form == "tanh" else "gelu"), node.args[0], (node,)
    if name == "leaky_relu":
        slope = node.kwargs.get("negative_slope", node.args[1] if len(node.args) > 1 else LEAK)
        return (name if slope == LEAK else ""), node.args[0], (node,)
    return name, node.args[0], (node,)


def _twice(node: Any) -> bool:
    """Whether it is r * r."""
    return called(node) == "mul" and len(node.args) == 2 and same(*node.args)
