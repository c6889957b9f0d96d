"""The names and formulas of norms, activations and row scales that all kernels share, on plain tensors.

    normalize      (n, statistics): the norm without weight, and what its backward needs
    affine         n * weight + bias
    activate       an activation by name
    through        a gradient behind it
    quantize_rows  (out, scale): one scale a row, or a given one

norm is one of NORMS, activation one of ACTIVATIONS. block: the length of the blocks of a row that are normalized apart;
0 for the whole row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from loka_compile.kernels.quantize.quantize import AMAX_FLOOR, INTEGER_FLOOR, finite_or_nan, finite_size

NORMS = ("none", "rms", "layer")
ACTIVATIONS = ("none", "relu", "silu", "hard_swish", "gelu")
HALVES = (torch.bfloat16, torch.float16)
FLOATS = (*HALVES, torch.float32)
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz)
LONGEST_ROW = 32768
"""Values of a row that the kernel holds in registers. Longer rows take the reference."""


@dataclass(frozen=True)
class RowNorm:
    """The arguments that ops on rows share; part of their declarations.

    norm, block, activation: as in the module's docstring, unless the op says more. dtype: of the result. eps: added to
    the variance or mean square. save: also write what a backward needs.
    """

    norm: str
    block: int
    activation: str
    dtype: torch.dtype
    eps: float
    save: bool


def normalize(x: Tensor, norm: str, block: int, eps: float) -> tuple[Tensor, Tensor]:
    """(n, statistics) of x in float32 or float64. statistics: (..., S), rstd of each block; for `layer` the means come
    first; (..., 0) for `none`."""
    if norm == "none":
        return x, x.new_empty((*x.shape[:-1], 0))
    blocks = x.unflatten(-1, (-1, block or x.shape[-1]))
    if norm == "rms":
        rstd = torch.rsqrt(blocks.square().mean(-1, keepdim=True) + eps)
        return (blocks * rstd).flatten(-2), rstd.squeeze(-1)
    mean = blocks.mean(-1, keepdim=True)
    centred = blocks - mean
    rstd = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return (centred * rstd).flatten(-2), torch.cat([mean, rstd], -2).squeeze(-1)


def affine(n: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """n * weight + bias; either may be None."""
    n = n if weight is None else n * weight.to(n.dtype)
    return n if bias is None else n + bias.to(n.dtype)


def activate(x: Tensor, activation: str) -> Tensor:
    """The activation of x; it keeps x's dtype."""
    if activation == "silu":
        return x * torch.sigmoid(x)
    functions = {"relu": torch.relu, "hard_swish": torch.nn.functional.hardswish, "gelu": torch.nn.functional.gelu}
    return functions[activation](x) if activation in functions else x


def through(g: Tensor, z: Tensor, activation: str) -> Tensor:
    """g behind the activation of z. As in torch, nothing comes through where it is cut off, not even NaN."""
    product = g * slope(z, activation)
    end = {"relu": 0.0, "hard_swish": -3.0}.get(activation)
    return product if end is None else torch.where(z <= end, 0.0, product)


def slope(z: Tensor, activation: str) -> Tensor:
    """The activation's derivative at z."""
    if activation == "relu":
        return torch.where(z <= 0, 0.0, torch.ones_like(z))
    if activation == "silu":
        s = torch.sigmoid(z)
        return s * (1 + z * (1 - s))
    if activation == "hard_swish":
        return torch.where(z <= -3, 0.0, torch.where(z < 3, z / 3 + 0.5, 1.0))
    if activation == "gelu":
        density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        return torch.special.erfc(-z / math.sqrt(2)) / 2 + z * density
    return torch.ones_like(z)


def quantize_rows(y: Tensor, given: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(out, scale) of float32 values, rows along the last dimension. scale: (..., 1) for FP8 and int8; (0,) if out has
    no scale or `given`."""
    if dtype in FLOATS or dtype == torch.float64:
        return y.to(dtype), y.new_empty(0, dtype=torch.float32)
    top = largest(dtype)
    if given is not None:
        y = finite_or_nan(y) / given.to(y.dtype)
        return y.clamp(-top, top).to(dtype), y.new_empty(0, dtype=torch.float32)
    if dtype == torch.int8:
        scale = y.abs().amax(-1, keepdim=True).clamp(min=INTEGER_FLOOR) / top
        return (y / scale).round().to(dtype), scale.float()
    scale = finite_size(y).amax(-1, keepdim=True).clamp(min=AMAX_FLOOR) / top
    return finite_or_nan(y / scale).to(dtype), scale.float()


def largest(dtype: torch.dtype) -> float:
    """The magnitude that amax is mapped to."""
    return 127.0 if dtype == torch.int8 else torch.finfo(dtype).max


def check_norm(
    op: str, n: int, weight: Tensor | None, bias: Tensor | None, norm: str, block: int, activation: str
) -> None:
    """Raises ValueError for unknown names, blocks that do not divide n, or vectors of another shape than (n,)."""
    if norm not in NORMS:
        raise ValueError(f"{op}: norm must be one of {', '.join(NORMS)}, got {norm!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if block < 0 or (block and n % block):
        raise ValueError(f"{op}: block must divide a row of {n} values, got {block}")
    for name, each in (("weight", weight), ("bias", bias)):
        if each is not None and each.shape != (n,):
            raise ValueError(f"{op}: {name} must have shape ({n},), got {tuple(each.shape)}")


def statistics_shape(x: Tensor, norm: str, block: int) -> tuple[int, ...]:
    """The shape of `normalize`'s statistics."""
    n = x.shape[-1]
    return *x.shape[:-1], {"none": 0, "rms": 1, "layer": 2}[norm] * (n // (block or n))
