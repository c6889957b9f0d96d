"""raise_norms: a norm, its activation and its blocks become one loka::norm_quantize, which fuse puts into a GEMM.

AOTAutograd would take them apart, and parts are many where the whole is one. In training the op saves its statistics,
and its gradient is one op too, loka::norm_quantize_backward. Works on CUDA only: on a CPU Inductor fuses the parts
better than an op of ours would run. An activation alone is raised behind a product. What fuse has no use for, lower
writes out again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import getitem
from typing import Any, ClassVar

import torch
from torch import fx

from loka_compile.graph.edit import emit, replace
from loka_compile.graph.facts import Reading
from loka_compile.graph.sites import module_name
from loka_compile.kernels.norm_quantize.norm_quantize import NormQuantize
from loka_compile.kernels.norms import FLOATS, RowNorm
from loka_compile.passes.base import Context, PassResult, Rewrite, apply

NORMS = {"layer_norm": "layer", "rms_norm": "rms"}
ACTIVATIONS = {"relu": "relu", "silu": "silu", "hardswish": "hard_swish", "gelu": "gelu"}
PRODUCTS = ("linear", "matmul", "mm", "addmm")
RMS_EPS = {torch.float64: torch.finfo(torch.float64).eps}
"""F.rms_norm's own eps, where none is given: that of the type it computes in, which else is float32."""


@dataclass(frozen=True)
class RaiseNorms:
    name: ClassVar[str] = "raise_norms"
    runs_on: ClassVar[tuple[str, ...]] = ("cuda",)

    def __call__(self, reading: Reading, context: Context) -> PassResult:
        rules = partial(pattern, reading), partial(check, reading), partial(rewrite, reading, context.training)
        return apply(reading.graph, reading.graph.nodes, *rules)


@dataclass(frozen=True)
class Norm:
    """nodes: what it is made of, the last one whose value is replaced. x: what is read. The rest as in
    loka::norm_quantize."""

    nodes: tuple[fx.Node, ...]
    x: fx.Node
    norm: str = "none"
    shape: tuple[Any, ...] = ()
    weight: fx.Node | None = None
    bias: fx.Node | None = None
    eps: float = 0.0
    block: int = 0
    activation: str = "none"

    @property
    def last(self) -> fx.Node:
        return self.nodes[-1]


def pattern(reading: Reading, node: fx.Node) -> Norm | None:
    """A norm; or an activation behind a product."""
    if reading.op(node) in NORMS:
        return norm_of(reading, node)
    activation = _activation(reading, node)
    if activation and reading.op(reading.arg(node, "self")) in PRODUCTS:
        return Norm((node,), reading.arg(node, "self"), activation=activation)
    return None


def norm_of(reading: Reading, node: fx.Node) -> Norm:
    """What a node of NORMS does."""
    names = "input", "normalized_shape", "weight", "bias", "eps"
    x, shape, weight, bias, eps = (reading.arg(node, name) for name in names)
    eps = eps if eps is not None else RMS_EPS.get(reading.value(x).dtype, torch.finfo(torch.float32).eps)
    return Norm((node,), x, NORMS[reading.op(node)], tuple(shape), weight, bias, eps)


def check(reading: Reading, norm: Norm) -> str:
    """Why it stays as it is; empty if it is raised."""
    if (dtype := reading.value(norm.x).dtype) not in FLOATS:
        return f"it reads {dtype}, not bfloat16, float16 or float32"
    if norm.norm != "none" and not (len(norm.shape) == 1 and isinstance(norm.shape[0], int)):
        return f"it normalises over {norm.shape}, not over one dimension whose size is known"
    return reading.reason_against(norm.nodes)


def rewrite(reading: Reading, save: bool, norm: Norm) -> Rewrite:
    """With block_norm's blocks around it, the cast of a float32 norm back to 16 bits, and the activation."""
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
    cut, joined = norm.x, reading.only_user(norm.last)
    around = reading.op(cut), reading.op(joined)
    if norm.norm != "rms" or norm.weight is not None or around != ("unflatten", "flatten"):
        return norm
    blocks = reading.arg(cut, "dim"), reading.arg(cut, "sizes"), reading.arg(joined, "start_dim")
    if blocks != (-1, [-1, norm.shape[0]], -2) or reading.arg(joined, "end_dim") != -1:
        return norm
    return _grown(reading, norm, (cut, joined), x=reading.arg(cut, "self"), block=norm.shape[0])


def _cast_back(reading: Reading, norm: Norm) -> Norm:
    wide, back = norm.x, reading.only_user(norm.last)
    if (reading.op(wide), reading.op(back)) != ("to", "to"):
        return norm
    source, result = reading.value(reading.arg(wide, "self")), reading.value(back)
    if (source.dtype, source.device) != (result.dtype, result.device) or source.dtype not in FLOATS:
        return norm
    return _grown(reading, norm, (wide, back), x=reading.arg(wide, "self"))


def _activated(reading: Reading, norm: Norm) -> Norm:
    user = reading.only_user(norm.last)
    if norm.activation != "none" or not (activation := _activation(reading, user)):
        return norm
    return _grown(reading, norm, (user,), activation=activation)


def _grown(reading: Reading, norm: Norm, around: Sequence[Any], **changes: Any) -> Norm:
    """The norm with what stands around it, the last value last; as it was, where that is not one computation."""
    nodes = (*norm.nodes, *around)
    return norm if reading.reason_against(nodes) else dataclasses.replace(norm, nodes=nodes, **changes)


def _activation(reading: Reading, node: Any) -> str:
    name = ACTIVATIONS.get(reading.op(node), "")
    return "" if name == "gelu" and reading.arg(node, "approximate") != "none" else name
