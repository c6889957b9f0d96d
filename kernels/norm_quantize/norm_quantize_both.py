"""loka::norm_quantize_both: a row's norm and activation, quantized for the two products that read it in training.

    out, scale, copy, copy_scale, statistics = norm_quantize_both(
        x, weight, bias, norm, block, activation, dtype, eps, save)

    y = activation(norm(x) * weight + bias)
    out * scale ~ y;  copy * copy_scale ~ its transpose

x: (R, N) in bfloat16, float16 or float32.
weight, bias, norm, block, activation, eps, save, statistics: those of loka::norm_quantize.
dtype: FP8.
out: (R, N) with scale (R, 1), as the forward's product reads it.
copy: (N, R) with scale (N, 1), as grad_weight's product reads it, which contracts over R. y itself is never written. A
    column's scale needs all rows, so the copy takes a second pass over x.

Everything is computed in float32 and rounded once. Zero rows, NaN and infinities as in loka::norm_quantize.
Raises ValueError for other names, dtypes and shapes.
Source: fused normalization blog (pytorch.org).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, NamedTuple

import torch
import triton
from torch import Tensor

from loka_compile.kernels import norms
from loka_compile.kernels.launch import Launch, Specimen, arch_of, moved
from loka_compile.kernels.norm_quantize import norm_quantize
from loka_compile.kernels.norm_quantize.norm_quantize_backward import quantize_columns
from loka_compile.kernels.norm_quantize.norm_quantize_backward_kernel import sums_kernel
from loka_compile.kernels.norm_quantize.norm_quantize_both_kernel import both_kernel
from loka_compile.kernels.norm_quantize.norm_quantize_tiles import PARTS, tile
from loka_compile.kernels.op import Op, T, contiguous, declare, dense
from loka_compile.kernels.quantize.quantize import AMAX_FLOOR

# ---------------------------------------------------------------- the declaration, the specification


class NormedBoth(NamedTuple, Generic[T]):
    out: T
    scale: T
    copy: T
    copy_scale: T
    statistics: T


@dataclass(frozen=True)
class NormQuantizeBoth(Op[T, NormedBoth[T]]):
    """See the module's docstring."""

    name: ClassVar[str] = "norm_quantize_both"
    values: ClassVar[Any] = NormedBoth
    x: T
    weight: T | None
    bias: T | None
    row: norms.RowNorm


def plain(call: NormQuantizeBoth[Tensor], dtype: torch.dtype) -> norm_quantize.NormQuantize[Tensor]:
    """The norm alone, along rows."""
    return norm_quantize.NormQuantize(call.x, call.weight, call.bias, None, replace(call.row, dtype=dtype))


def reference(call: NormQuantizeBoth[Tensor]) -> NormedBoth[Tensor]:
    """The specification; see the module's docstring."""
    check(call)
    y, _, statistics = norm_quantize.reference(plain(call, torch.float32))
    return NormedBoth(*norms.quantize_rows(y, None, call.row.dtype), *quantize_columns(y, call.row.dtype), statistics)


def check(call: NormQuantizeBoth[Tensor]) -> None:
    x, dtype = call.x, call.row.dtype
    if x.dim() != 2 or x.dtype not in norms.FLOATS or dtype not in norms.FP8:
        raise ValueError(
            f"loka::{call.name}: x must be floats (R, N) and out FP8, got {x.dtype} {tuple(x.shape)} and {dtype}"
        )
    norm_quantize.check(plain(call, dtype))


# ---------------------------------------------------------------- its launches


def launches(call: NormQuantizeBoth[Tensor], outputs: NormedBoth[Tensor], arch: str) -> list[Launch]:
    """Rows, with partial maxima of the columns; these maxima combined; the transposed copy. x is contiguous."""
    x, weight, bias, row = call.x, call.weight, call.bias, call.row
    out, scale, copy, copy_scale, statistics = outputs
    rows, n = x.shape
    length = row.block or n
    bb, bl = triton.next_power_of_2(n // length), triton.next_power_of_2(length)
    bm, warps = tile(rows, bb * bl, arch, 32, 8)  # maxima need registers
    parts = min(triton.cdiv(rows, bm), PARTS)
    amaxes, columns_amax = scale.new_empty((parts, n)), scale.new_empty(n)
    saved = statistics if statistics.numel() else None
    top = norms.largest(out.dtype)

    def pass_over(target: Tensor, programs: int, bm: int, warps: int, **more: Tensor) -> Launch:
        none = dict.fromkeys(("columns_amax", "scale", "statistics", "amaxes"))
        args = {"x": x, "weight": weight, "bias": bias, "out": target, **none, **more, "rows": rows}
        constants = {
            "N": n,
            "BLOCKS": n // length,
            "EPS": row.eps,
            "NORM": row.norm,
            "ACTIVATION": row.activation,
            "TOP": top,
            "FLOOR": AMAX_FLOOR,
            "COPY": "columns_amax" in more,
            "BM": bm,
            "BB": bb,
            "BL": bl,
        }
        nbytes = moved(x, weight, bias, target, *more.values())
        return Launch(both_kernel, (programs,), args, constants, warps, 1, 0, nbytes)

    nothing = dict.fromkeys(("weight_sums", "bias_sums", "totals", "grad_weight", "grad_bias", "total"))
    args = {**nothing, "amaxes": amaxes, "columns_amax": columns_amax, "copy_scale": copy_scale, "parts": parts}
    constants = {"N": n, "TOP": top, "FLOOR": AMAX_FLOOR, "BP": 64, "BN": 32}
    nbytes = moved(amaxes, columns_amax, copy_scale)
    by_rows = pass_over(out, parts, bm, warps, scale=scale, statistics=saved, amaxes=amaxes)
    bm, warps = tile(
        rows, bb * bl, arch, 32, 8 if arch.startswith("gfx") else 16
    )  # enough rows to fill whole memory sectors of the copy
    return [
        by_rows,
        Launch(sums_kernel, (triton.cdiv(n, 32),), args, constants, 4, 2, 0, nbytes),
        pass_over(copy, triton.cdiv(rows, bm), bm, warps, columns_amax=columns_amax),
    ]


# ---------------------------------------------------------------- the op


def run(call: NormQuantizeBoth[Tensor]) -> NormedBoth[Tensor]:
    x = call.x
    if not x.is_cuda or x.shape[-1] > norms.LONGEST_ROW or not x.shape[0]:
        return dense(reference)(call)
    check(call)
    outputs = empty_outputs(call)
    for each in launches(contiguous(call), outputs, arch_of(x)):
        each.run()
    return outputs


norm_quantize_both = declare(NormQuantizeBoth, dense(reference), run)


def empty_outputs(call: NormQuantizeBoth[Tensor]) -> NormedBoth[Tensor]:
    """Memory for the kernels' results."""
    rows, n = call.x.shape
    out, scale, statistics = norm_quantize.empty_outputs(plain(call, call.row.dtype))
    return NormedBoth(out, scale, out.new_empty((n, rows)), scale.new_empty((n, 1)), statistics)


def specimens(arch: str) -> list[Specimen]:
    """Every launch of the op at the field's shapes."""
    fp8 = torch.float8_e4m3fnuz if arch == "gfx942" else torch.float8_e4m3fn

    def of(norm: str, activation: str, rows: int, n: int, weights: int = 0, block: int = 0) -> list[Specimen]:
        x = torch.empty(rows, n, dtype=torch.bfloat16, device="meta")
        weight, bias = (x.new_empty(n) if weights > i else None for i in (0, 1))
        call = NormQuantizeBoth(x, weight, bias, norms.RowNorm(norm, block, activation, fp8, 1e-6, True))
        made = launches(call, empty_outputs(call), arch)
        words = ["norm_quantize_both", norm + (f"/{block}" if block else ""), *["affine"] * (weights > 0), activation]
        name = f"{' '.join(words)} {rows}x{n}"
        listed = zip(made, ("", " sums", " copy"), strict=True)
        return [Specimen(name + what, each, (), ("wide_loads",) if not what else ()) for each, what in listed]

    return [
        *of("layer", "relu", 65536, 2048, weights=2),
        *of("rms", "silu", 65536, 512, weights=1),
        *of("rms", "hard_swish", 65536, 512, block=256),
    ]
