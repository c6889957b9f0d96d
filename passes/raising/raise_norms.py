"""raise_norms: a norm with its blocks and its activation becomes one loka::norm_quantize, for `fuse` to put into a
GEMM.

AOTAutograd would decompose a norm into many nodes, and finding one node is simpler than matching many. In training the
op saves its statistics, and its gradient is one op too, loka::norm_quantize_backward. An activation without a norm is
raised if it reads a product.

It works on CUDA only: on a CPU Inductor fuses the parts better than an op of ours would run. `lower` writes out what
`fuse` did not use.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import getitem
from typing import Any, ClassVar

from torch import fx

from loka_compile import compat
from loka_compile.graph.edit import emit, replace
from loka_compile.graph.facts import Reading
from loka_compile.graph.sites import module_name
from loka_compile.kernels.norm_quantize.norm_quantize import NormQuantize
from loka_compile.kernels.norms import FLOATS, RowNorm
from loka_compile.passes.base import Context, PassResult, Rewrite, apply
from loka_compile.passes.raising._norms import NORMS, Norm, norm_of

ACTIVATIONS = {"relu": "relu", "silu": "silu", "hardswish": "hard_swish", "gelu": "gelu"}
PRODUCTS = ("linear", "matmul", "mm", "addmm")


@dataclass(frozen=True)
class RaiseNorms:
    name: ClassVar[str] = "raise_norms"
    runs_on: ClassVar[tuple[str, ...]] = ("cuda",)

    def __call__(self, reading: Reading, context: Context) -> PassResult:
        rules = partial(pattern, reading), partial(check, reading), partial(rewrite, reading, context.training)
        return apply(reading.graph, reading.graph.nodes, *rules)


def pattern(reading: Reading, node: fx.Node) -> Norm | None:
    """A norm, or an activation that reads a product."""
    if reading.op(node) in NORMS:
        return norm_of(reading, node)
    activation = _activation(reading, node)
    if activation and reading.op(reading.arg(node, "self")) in PRODUCTS:
        return Norm((node,), reading.arg(node, "self"), activation=activation)
    return None


def check(reading: Reading, norm: Norm) -> str:
    """Why the norm stays as it is; "" if it is raised."""
    if (dtype := reading.value(norm.x).dtype) not in FLOATS:
        return f"its input is {dtype}; expected bfloat16, float16 or float32"
    shape = reading.shape(norm.x)
    if not shape or not compat.guard_free(shape[-1] > 0):
        return f"its input is {shape}; expected rows of one column at least"
    if norm.norm != "none" and not (len(norm.shape) == 1 and isinstance(norm.shape[0], int)):
        return f"it normalizes over {norm.shape}; expected one dimension of known size"
    return reading.reason_against(norm.nodes)


def rewrite(reading: Reading, save: bool, norm: Norm) -> Rewrite:
    """Raise the norm with what belongs to it: block_norm's blocks, the cast of a float32 norm back to 16 bits, the
    activation. save: keep the statistics for a gradient."""
    norm = _in_blocks(reading, norm)
    norm = _cast_back(reading, norm)
    norm = _activated(reading, norm)
    dtype = reading.value(norm.last).dtype
    row = RowNorm(norm.norm, norm.block, norm.activation, dtype, norm.eps, save)
    call = NormQuantize(norm.x, norm.weight, norm.bias, None, row)
    all_of_it = emit(reading, norm.last, call.target(), *call.args)
    out = replace(reading, norm.last, emit(reading, norm.last, getitem, all_of_it, call.place("out")))
    parts = [norm.norm, f"blocks of {norm.block}" if norm.block else "", norm.activation]
    return Rewrite(module_name(out), "one op: " + ", ".join(part for part in parts if part not in ("", "none")))


# ---------------------------------------------------------------- what stands around it


def _in_blocks(reading: Reading, norm: Norm) -> Norm:
    """The norm over blocks, if unflatten and flatten around it cut each row into blocks."""
    cut, joined = norm.x, reading.only_user(norm.last)
    around = reading.op(cut), reading.op(joined)
    if norm.norm != "rms" or norm.weight is not None or around != ("unflatten", "flatten"):
        return norm
    blocks = reading.arg(cut, "dim"), reading.arg(cut, "sizes"), reading.arg(joined, "start_dim")
    if blocks != (-1, [-1, norm.shape[0]], -2) or reading.arg(joined, "end_dim") != -1:
        return norm
    return _grown(reading, norm, (cut, joined), x=reading.arg(cut, "self"), block=norm.shape[0])


def _cast_back(reading: Reading, norm: Norm) -> Norm:
    """The norm with the casts around it, if its input was cast to float32 and its result is cast back."""
    wide, back = norm.x, reading.only_user(norm.last)
    if (reading.op(wide), reading.op(back)) != ("to", "to"):
        return norm
    source, result = reading.value(reading.arg(wide, "self")), reading.value(back)
    if (source.dtype, source.device) != (result.dtype, result.device) or source.dtype not in FLOATS:
        return norm
    return _grown(reading, norm, (wide, back), x=reading.arg(wide, "self"))


def _activated(reading: Reading, norm: Norm) -> Norm:
    """The norm with the activation that alone reads it."""
    user = reading.only_user(norm.last)
    if norm.activation != "none" or not (activation := _activation(reading, user)):
        return norm
    return _grown(reading, norm, (user,), activation=activation)


def _grown(reading: Reading, norm: Norm, around: Sequence[Any], **changes: Any) -> Norm:
    """The norm with the nodes around it, the new last one at the end. It stays as it was if those nodes are not one
    computation."""
    nodes = (*norm.nodes, *around)
    return norm if reading.reason_against(nodes) else dataclasses.replace(norm, nodes=nodes, **changes)


def _activation(reading: Reading, node: Any) -> str:
    """norm_quantize's name of an activation; "" for other nodes and for the tanh form of gelu."""
    name = ACTIVATIONS.get(reading.op(node), "")
    return "" if name == "gelu" and reading.arg(node, "approximate") != "none" else name
