"""loka::quantize: a tensor in few bits, with its scale.

    q, scale = quantize(x, dtype, scaling, axis)        x ~ q * scale

x: (..., R, C) in any float dtype.
dtype: int8, uint8, float8_e4m3fn, float8_e5m2. uint8 is for tensors without negative values, which would become 0.
scale: float32.
axis: the GEMM's contraction, -1 or -2.
scaling:

    tensor     one scale, (1,)
    row        one scale a slice along `axis`: shape of x with that axis 1
    row7       for int8: `row` in 7 bits, magnitudes of at most 64
    block      one scale per 128 values along `axis`: shape of x with that axis ceil(C / 128)
    tile       one scale per 128 x 128 block: (..., ceil(R / 128), ceil(C / 128))
    affine     for uint8 along -1: step and smallest value of a row, (..., R, 1, 2); x ~ q * step + smallest
    shifted    for uint8 along -1: int8's `row` plus 128, (..., R, 1, 1); x ~ (q - 128) * scale

Zero slices give zeros, because amax is floored: at 1e-12 for FP8; at 1e-30 for integers, which have no small numbers of
their own to fall back on. (Gradients of a mean over many rows are small, and only zeros may become zeros.)

A value that is not finite must never become an ordinary number, but casts saturate silently (inf -> 448). In FP8 it
becomes NaN in its own place. Integers have no NaN, so the scale of its slice is not finite; `tensor` would spoil the
whole tensor, so integers refuse it. No other clamp is needed: amax maps to the largest value, and what the division
adds is rounded away.
Source: LoKA recipes (arXiv 2605.10886); the floor is torchao's, for the NaNs users met without it (torchao #3356).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple

import torch
from torch import Tensor

from loka_compile import compat
from loka_compile.kernels.op import Op, T, declare

BLOCK = 128
AMAX_FLOOR = 1e-12
INTEGER_FLOOR = 1e-30
LARGEST = {torch.int8: 127.0, torch.uint8: 255.0, torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
"""The magnitude to which amax is mapped, by dtype. int8 leaves out -128, to stay symmetric."""
NARROWER = {"row7": 64.0, "shifted": 127.0}
"""The largest magnitude by scaling, if the scaling decides it."""
SHIFT = 128
"""The number that `shifted` adds to a signed byte."""

INTEGERS = (torch.int8, torch.uint8)
ROWS = ("row", "row7", "shifted")
"""Scalings with one scale a slice."""
SCALINGS = ("tensor", *ROWS, "block", "tile", "affine")


def reference(x: Tensor, dtype: torch.dtype, scaling: str, axis: int) -> tuple[Tensor, Tensor]:
    """The specification; see the module's docstring. Raises ValueError for arguments it does not define."""
    _check(x, dtype, scaling, axis)
    x = x.float()
    if compat.guard_free(x.numel() == 0):  # amax of an empty tensor is an error
        return x.to(dtype), x.new_ones(scale_shape(x, scaling, axis))
    if scaling == "tensor":
        scale = _scale(_finite_amax(x, tuple(range(x.dim())), keepdim=False).reshape(1), dtype)
        return _cast(x / scale, dtype), scale
    if scaling in ROWS:
        amax = x.abs().amax(axis, keepdim=True) if dtype in INTEGERS else _finite_amax(x, (axis,), keepdim=True)
        scale = _scale(amax, dtype, scaling)
        if scaling == "shifted":
            return ((x / scale).round() + SHIFT).to(dtype), scale.unsqueeze(-1)
        return _cast(x / scale, dtype), scale
    if scaling == "affine":
        least, most = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        step = _scale(most - least, dtype)
        return _cast((x - least) / step, dtype), torch.stack([step, least], -1)
    rows, columns = x.shape[-2], x.shape[-1]
    row_block, column_block = _block_shape(scaling, axis)
    blocks = _blocks(x, row_block, column_block)  # (..., R / row_block, row_block, C / column_block, column_block)
    scale = _scale(_finite_amax(blocks, (-3, -1), keepdim=True), dtype)
    q = _cast((blocks / scale).flatten(-2, -1).flatten(-3, -2), dtype)[..., :rows, :columns]
    return q.contiguous(), scale.squeeze(-1).squeeze(-2)


def dequantize(q: Tensor, scale: Tensor) -> Tensor:
    """The float32 values of a quantized tensor, for any scaling."""
    if scale.dim() == q.dim() + 1:
        step = scale[..., 0]
        return (q.float() - SHIFT) * step if is_shifted(scale) else q.float() * step + scale[..., 1]
    if scale.dim() == 1:
        return q.float() * scale
    rows, columns = q.shape[-2:]
    by = [1 if scale.shape[axis] == 1 or scale.shape[axis] == q.shape[axis] else BLOCK for axis in (-2, -1)]
    if by == [1, 1]:
        return q.float() * scale
    values = _blocks(q.float(), *by) * scale[..., :, None, :, None]
    return values.flatten(-2, -1).flatten(-3, -2)[..., :rows, :columns]


def is_shifted(scale: Tensor) -> bool:
    """Whether a scale with more dimensions than its tensor is that of `shifted`, not of `affine`."""
    return scale.shape[-1] == 1


def with_zeros(x: Tensor, rows: int, columns: int) -> Tensor:
    """x with so many rows and columns of zeros appended; x itself if there are none."""
    return torch.nn.functional.pad(x, (0, columns, 0, rows)) if rows or columns else x


def _check(x: Tensor, dtype: torch.dtype, scaling: str, axis: int) -> None:
    if x.dim() < 2 or not x.is_floating_point():
        raise ValueError(
            f"loka::quantize: x must be floating point with at least two dimensions, got {x.dtype} with {x.dim()}"
        )
    if dtype not in LARGEST:
        raise ValueError(f"loka::quantize: dtype must be one of {list(LARGEST)}, got {dtype}")
    if scaling not in SCALINGS:
        raise ValueError(f"loka::quantize: scaling must be one of {', '.join(SCALINGS)}, got {scaling!r}")
    if axis not in (-1, -2):
        raise ValueError(f"loka::quantize: axis must be -1 or -2, got {axis}")
    if scaling in ("affine", "shifted") and (dtype != torch.uint8 or axis != -1):
        raise ValueError(f"loka::quantize: {scaling} is for uint8 along axis -1, got {dtype} along {axis}")
    if scaling == "row7" and dtype != torch.int8:
        raise ValueError(f"loka::quantize: row7 is for int8, got {dtype}")
    if dtype in INTEGERS and scaling not in (*ROWS, "affine"):
        raise ValueError(
            f"loka::quantize: {dtype} must be scaled by row: one NaN would spoil more than its slice; got {scaling!r}"
        )


def _block_shape(scaling: str, axis: int) -> tuple[int, int]:
    return (BLOCK if scaling == "tile" or axis == -2 else 1), (BLOCK if scaling == "tile" or axis == -1 else 1)


def scale_shape(x: Tensor, scaling: str, axis: int) -> tuple[int, ...]:
    """The shape of the scale."""
    if scaling == "tensor":
        return (1,)
    row_block, column_block = _block_shape(scaling, axis)
    if scaling in ("affine", "shifted"):
        return (*x.shape[:-1], 1, 2 if scaling == "affine" else 1)
    rows, columns = -(-x.shape[-2] // row_block), -(-x.shape[-1] // column_block)
    if scaling in ROWS:
        rows, columns = (1, x.shape[-1]) if axis == -2 else (x.shape[-2], 1)
    return (*x.shape[:-2], rows, columns)


def _finite_amax(x: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    return finite_size(x).amax(dim=dims, keepdim=keepdim)


def finite_size(x: Tensor) -> Tensor:
    """|x|, or 0 where x is not finite. One comparison, false for NaN too; isfinite takes three operations."""
    return torch.where(x.abs() < float("inf"), x.abs(), 0.0)


def finite_or_nan(x: Tensor) -> Tensor:
    """x, or NaN where x is infinite, because inf - inf is NaN. On a CPU under Inductor this takes a third of the time
    of a torch.where."""
    return x + (x - x)


def _scale(amax: Tensor, dtype: torch.dtype, scaling: str = "") -> Tensor:
    """The scale that maps amax to the format's largest value. An int8 slice that is not finite gets a scale that is not
    finite."""
    return amax.clamp(min=floor_of(dtype)) / NARROWER.get(scaling, LARGEST[dtype])


def floor_of(dtype: torch.dtype) -> float:
    """The least amax of this dtype."""
    return INTEGER_FLOOR if dtype in INTEGERS else AMAX_FLOOR


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == torch.uint8:
        x = x.clamp(min=0)
    if dtype in INTEGERS:
        return x.round().to(dtype)
    return finite_or_nan(x).to(dtype)


def _blocks(x: Tensor, row_block: int, column_block: int) -> Tensor:
    rows, columns = -(-x.shape[-2] // row_block), -(-x.shape[-1] // column_block)
    more_rows, more_columns = rows * row_block - x.shape[-2], columns * column_block - x.shape[-1]
    if not compat.guard_free(more_rows + more_columns == 0):
        x = torch.nn.functional.pad(x, (0, more_columns, 0, more_rows))
    return x.unflatten(-1, (columns, column_block)).unflatten(-3, (rows, row_block))


# ---------------------------------------------------------------- the op


class Quantized(NamedTuple, Generic[T]):
    q: T
    scale: T


@dataclass(frozen=True)
class Quantize(Op[T, Quantized[T]]):
    """See the module's docstring."""

    name: ClassVar[str] = "quantize"
    values: ClassVar[Any] = Quantized
    x: T
    dtype: torch.dtype
    scaling: str
    axis: int


quantize = declare(Quantize, lambda call: reference(*call.args))
