"""raise_gdpa: attention with an element-wise activation instead of softmax becomes loka::gdpa, one kernel.

    act(q k^T * inside) v * outside     q (B, H, Tq, D), k and v (B, H, Tk, D); H may be missing

There are Tq x Tk scores a head. In one kernel they never reach memory, neither forward nor backward. It works on CUDA
in 16 bits. On a CPU Inductor fuses the parts as well.

Two products with anything else between them are not looked at. A pattern that almost fits is refused with the reason.
Source: Kunlun's PFFN, whose weights are made for each request (arXiv 2602.10016); HSTU's attention without softmax.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from torch import fx

from loka_compile.graph import edit
from loka_compile.graph.edit import emit, size_arg
from loka_compile.graph.facts import Reading
from loka_compile.graph.sites import module_name
from loka_compile.graph.sizes import same_sizes
from loka_compile.kernels.gdpa.gdpa import Gdpa
from loka_compile.kernels.gdpa.gdpa_kernel import WIDEST
from loka_compile.kernels.gdpa.gdpa_reference import LEAK
from loka_compile.kernels.norms import HALVES
from loka_compile.passes.base import Context, PassResult, Rewrite, apply

NAMES = {"gelu": "gelu", "relu": "relu", "silu": "silu", "hardswish": "hard_swish", "leaky_relu": "leaky_relu"}
"""ATen's name of an activation -> gdpa's."""


@dataclass(frozen=True)
class RaiseGdpa:
    name: ClassVar[str] = "raise_gdpa"
    runs_on: ClassVar[tuple[str, ...]] = ("cuda",)

    def __call__(self, reading: Reading, context: Context) -> PassResult:
        rules = partial(pattern, reading), partial(check, reading), partial(rewrite, reading)
        return apply(reading.graph, reading.graph.nodes, *rules)


@dataclass(frozen=True)
class Attention:
    """act(q turned * inside) v * outside.

    turned: k^T.
    last: the node whose value is replaced.
    between: the nodes from q to `last`.
    """

    q: fx.Node
    turned: fx.Node
    v: fx.Node
    last: fx.Node
    between: tuple[fx.Node, ...]
    activation: str
    inside: float
    outside: float


def pattern(reading: Reading, node: fx.Node) -> Attention | None:
    """The attention whose second product is this node, with a factor before or after it."""
    second = reading.product(node)
    if second is None:
        return None
    weights, outside, factors = _scaled(reading, second[0])
    activation, scores, activations = _activated(reading, weights)
    scores, inside, inner = _scaled(reading, scores)
    first = reading.product(scores)
    if not activation or first is None:
        return None
    found = Attention(*first, second[1], node, (*factors, *activations, *inner, scores), activation, inside, outside)
    user = reading.only_user(node)
    if inside == 1.0 and (behind := _factor(reading, user)):
        return replace(found, last=user, between=(*found.between, node), outside=outside * behind[1])
    return found


def check(reading: Reading, found: Attention) -> str:
    """Why the products stay as they are; "" if they are raised."""
    q, turned, v = (reading.value(each) for each in (found.q, found.turned, found.v))
    if not (q.dim() == turned.dim() == v.dim() and q.dim() in (3, 4)):
        return f"q, k and v have {q.dim()}, {turned.dim()} and {v.dim()} dimensions; expected 3 each or 4 each"
    k = turned.mT
    if not same_sizes(k.shape, v.shape) or not same_sizes((*q.shape[:-2], q.shape[-1]), (*k.shape[:-2], k.shape[-1])):
        return f"queries {tuple(q.shape)}, keys {tuple(k.shape)} and values {tuple(v.shape)} do not agree"
    if q.dtype not in HALVES or not q.dtype == k.dtype == v.dtype == reading.value(found.last).dtype:
        return f"queries, keys and values are {q.dtype}, {k.dtype} and {v.dtype}; the kernel needs bfloat16 or float16"
    width = reading.shape(found.q)[-1]
    if not isinstance(width, int) or width > WIDEST:
        return f"heads are {width} wide; the kernel takes at most {WIDEST}"
    if others := [each.name for each in found.between if reading.only_user(each) is None]:
        return f"{others[0]} is read elsewhere too"
    return reading.reason_against((*found.between, found.last))


def rewrite(reading: Reading, found: Attention) -> Rewrite:
    add, heads = partial(emit, reading, found.last), reading.rank(found.q) == 4
    k = add("transpose", found.turned, -2, -1)
    q, k, v = (each if heads else add("unsqueeze", each, 1) for each in (found.q, k, found.v))
    queries, keys = (size_arg(reading, found.last, each, 2) for each in (q, k))
    inside = found.inside != 1.0
    factor = found.inside if inside else found.outside
    call = Gdpa(q, k, v, None, None, queries, keys, found.activation, factor, inside, window=-1)
    out = add(call.target(), *call.args)
    if not heads:
        out = add("squeeze", out, 1)
    if inside and found.outside != 1.0:  # gdpa has one factor
        out = add("mul", out, found.outside)
    did = f"one op: attention by {found.activation}"
    return Rewrite(module_name(edit.replace(reading, found.last, out)), did)


# ---------------------------------------------------------------- the parts


def _factor(reading: Reading, node: Any) -> tuple[fx.Node, float] | None:
    """(x, c) if the node is x * c or x / c with a number c; c is inverted for a division."""
    x, c = reading.operands(node, "mul") or reading.operands(node, "div") or (None, None)
    if not isinstance(x, fx.Node) or not isinstance(c, int | float) or c == 0:
        return None
    return x, float(c) if reading.op(node) == "mul" else 1.0 / c


def _scaled(reading: Reading, node: Any) -> tuple[Any, float, tuple[fx.Node, ...]]:
    """(x, c, (node,)) if the node is x * c; else (node, 1.0, ())."""
    found = _factor(reading, node)
    return (node, 1.0, ()) if found is None else (*found, (node,))


def _activated(reading: Reading, node: Any) -> tuple[str, Any, tuple[fx.Node, ...]]:
    """(gdpa's name of the activation, its input, the nodes it is made of). The name is "" if gdpa has no such
    activation."""
    if (base := _squared(reading, node)) is not None:
        inner, x, nodes = _activated(reading, base)
        return ("relu_squared" if inner == "relu" else ""), x, (node, *nodes)
    name = NAMES.get(reading.op(node), "")
    if not name:
        return "", node, ()
    if name == "gelu" and reading.arg(node, "approximate") == "tanh":
        name = "gelu_approx"
    if name == "leaky_relu" and reading.arg(node, "negative_slope") != LEAK:
        name = ""
    return name, reading.arg(node, "self"), (node,)


def _squared(reading: Reading, node: Any) -> fx.Node | None:
    """r if the node is r^2 in any spelling."""
    if reading.op(node) == "square":
        return reading.arg(node, "self")
    a, b = reading.operands(node, "mul") or (None, 0)
    x, power = reading.operands(node, "pow") or (None, 0)
    return a if reading.same(a, b) else x if power in (2, 2.0) else None
