"""raise_norms: a norm, its activation and its blocks become one loka::norm_quantize, which fuse puts into a GEMM.

AOTAutograd would take them apart, and parts are many where the whole is one. In training the op saves its statistics,
and its gradient is one op too, loka::norm_quantize_backward. Works on CUDA only: on a CPU Inductor fuses the parts
better than an op of ours would run. An activation alone is raised behind a product. What fuse has no use for, lower
writes out again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import getitem
from typing import Any, ClassVar

import torch
from torch import fx
from torch.nn import functional as F

from loka_compile.graph.reading import called, erase, only_user, value, written
from loka_compile.graph.sites import module_name
from loka_compile.graph.torch_ops import emit
from loka_compile.kernels.norm_quantize import FLOATS, NormQuantize
from loka_compile.passes.base import Context, PassResult, Rewrite, apply

LAYER, RMS = (F.layer_norm, torch.layer_norm), (F.rms_norm, torch.rms_norm)
ACTIVATIONS = ("relu", "silu", "hard_swish", "gelu")
RMS_EPS = {torch.float64: torch.finfo(torch.float64).eps}
"""F.rms_norm's own eps, where none is given: that of the type it computes in, which else is float32."""


@dataclass(frozen=True)
class RaiseNorms:
    name: ClassVar[str] = "raise_norms"
    runs_on: ClassVar[tuple[str, ...]] = ("cuda",)

    def __call__(self, graph: fx.Graph, context: Context) -> PassResult:
        def raised(found: Norm) -> Rewrite:
            return rewrite(_with_what_follows(found), context.training)

        return apply(graph, graph.nodes, pattern, check, raised)


@dataclass(frozen=True)
class Norm:
    """Nodes from `x`, which is read, to `last`, whose value is replaced; the rest as in loka::norm_quantize."""

    x: fx.Node
    last: fx.Node
    norm: str = "none"
    shape: tuple[Any, ...] = ()
    weight: fx.Node | None = None
    bias: fx.Node | None = None
    eps: float = 0.0
    block: int = 0
    activation: str = "none"


def pattern(node: fx.Node) -> Norm | None:
    """A norm; or an activation behind a product."""
    if node.op == "call_function" and node.target in LAYER + RMS:
        return norm_of(node)
    activation = _activation(node)
    if activation and called(node.args[0]) in ("linear", "matmul"):
        return Norm(node.args[0], node, activation=activation)  # type: ignore[arg-type]
    return None


def norm_of(node: fx.Node) -> Norm:
    """What a call of LAYER or RMS does."""
    layer = node.target in LAYER
    names = ("input", "normalized_shape", "weight", *(("bias",) if layer else ()), "eps")
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    x, shape, eps = given["input"], given["normalized_shape"], given.get("eps", 1e-5 if layer else None)
    shape = tuple(shape) if isinstance(shape, list | tuple) else (shape,)
    eps = eps if eps is not None else RMS_EPS.get(value(x).dtype, torch.finfo(torch.float32).eps)
    return Norm(x, node, "layer" if layer else "rms", shape, given.get("weight"), given.get("bias"), eps)


def check(norm: Norm) -> str:
    """Why it stays as it is; empty if it is raised."""
    x = value(norm.x)
    if x is None or x.dtype not in FLOATS:
        return f"it reads {x.dtype if x is not None else 'no tensor'}, not bfloat16, float16 or float32"
    if norm.norm != "none" and not (len(norm.shape) == 1 and isinstance(norm.shape[0], int)):
        return f"it normalises over {norm.shape}, not over one dimension whose size is known"
    if name := written(norm.x) or written(norm.last):
        return f"its tensor is written to in place ({name})"
    return ""


def _with_what_follows(norm: Norm) -> Norm:
    """With block_norm's blocks around it, the cast of a float32 norm back to 16 bits, and the activation."""
    user = only_user(norm.last)
    if norm.norm == "rms" and called(norm.x) == "unflatten" and called(user) == "flatten" and norm.weight is None:
        blocked = norm.x.args[1:] == (-1, (-1, norm.shape[0])) and user.args[1:] == (-2,)  # type: ignore[union-attr]
        if blocked and isinstance(norm.x.args[0], fx.Node) and not written(user):
            norm = replace(norm, x=norm.x.args[0], last=user, block=norm.shape[0])
    norm = _cast_back(norm)
    user = only_user(norm.last)
    if norm.activation == "none" and user is not None and (activation := _activation(user)) and not written(user):
        norm = replace(norm, last=user, activation=activation)
    return norm


def _cast_back(norm: Norm) -> Norm:
    user, source = only_user(norm.last), norm.x.args[0] if called(norm.x) == "cast" else None
    if called(user) == "cast" and user.args[0] is norm.last and isinstance(source, fx.Node):  # type: ignore[union-attr]
        kinds = value(source).dtype, value(user).dtype  # type: ignore[arg-type]
        if kinds[0] == kinds[1] and kinds[0] in FLOATS and not (written(source) or written(user)):
            return replace(norm, x=source, last=user)
    return norm


def _activation(node: fx.Node) -> str:
    name = called(node)
    if name not in ACTIVATIONS or (name == "gelu" and node.kwargs.get("approximate", "none") != "none"):
        return ""
    return name if node.args[1:] in ((), (False,)) else ""


def rewrite(norm: Norm, save: bool) -> Rewrite:
    dtype = value(norm.last).dtype
    kind = norm.norm, norm.block, norm.activation, dtype, norm.eps, save
    call = NormQuantize(norm.x, norm.weight, norm.bias, None, *kind)
    out = emit(norm.last, getitem, emit(norm.last, call.target(), *call.args), 0)
    out.meta = {**norm.last.meta, "example_value": value(out)}
    norm.last.replace_all_uses_with(out)
    erase(norm.last)
    parts = [norm.norm, f"blocks of {norm.block}" if norm.block else "", norm.activation]
    return Rewrite(module_name(out), "one op: " + ", ".join(part for part in parts if part not in ("", "none")))
