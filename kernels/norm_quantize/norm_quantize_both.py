"""loka::norm_quantize_both: a row's norm and activation, quantized for the two products that read it in training.

    out, scale, copy, copy_scale, statistics = norm_quantize_both(
        x, weight, bias, norm, block, activation, dtype, eps, save)

    y = activation(norm(x) * weight + bias)
    out * scale ~ y;  copy * copy_scale ~ its transpose

x: (R, N) in bfloat16, float16 or float32. weight, bias, norm, block, activation, eps, save, statistics: those of
loka::norm_quantize. dtype: FP8. out has one scale a row, (R, 1), as the forward's product takes it; copy, (N, R), one
for each of its rows, (N, 1), as grad_weight's does (its contraction is over R). y itself is never written: a column's
scale needs all rows, so the copy is a second pass over x.

Computed in float32 and rounded once. Zero rows, NaN and infinities as in loka::norm_quantize.
Raises ValueError on other names, dtypes and shapes. Source: fused normalization blog (papers.md 1.6).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from loka_compile.kernels import norms
from loka_compile.kernels.launch import Launch, Specimen, arch_of, moved
from loka_compile.kernels.norm_quantize import norm_quantize
from loka_compile.kernels.norm_quantize.norm_quantize_backward import PARTS, quantize_columns, tile
from loka_compile.kernels.norm_quantize.norm_quantize_backward_kernel import store_turned, sums_kernel
from loka_compile.kernels.norm_quantize.norm_quantize_kernel import normed
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
            f"loka::{call.name}: x is (R, N) of floats and out FP8, got {x.dtype} {tuple(x.shape)} and {dtype}"
        )
    norm_quantize.check(plain(call, dtype))


# ---------------------------------------------------------------- the Triton kernel


@triton.jit
def both_kernel(
    x, weight, bias, columns_amax, out, scale, statistics, amaxes, rows,
    N: tl.constexpr, BLOCKS: tl.constexpr, EPS: tl.constexpr, NORM: tl.constexpr, ACTIVATION: tl.constexpr,
    TOP: tl.constexpr, FLOOR: tl.constexpr, COPY: tl.constexpr, BM: tl.constexpr, BB: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """A program goes through tiles of BM rows, each as BB blocks of BL values, and leaves the columns' largest
    magnitudes in `amaxes`. COPY: out is the transpose, each of its rows scaled to its `columns_amax`."""
    LENGTH: tl.constexpr = N // BLOCKS
    EVEN: tl.constexpr = BB == BLOCKS and BL == LENGTH
    row = tl.arange(0, BM)
    blocks, columns = tl.arange(0, BB), tl.arange(0, BL)
    valid = (blocks < BLOCKS)[:, None] & (columns < LENGTH)[None, :]
    column = blocks[:, None] * LENGTH + columns[None, :]  # of the row
    most = tl.zeros((BM, BB, BL), tl.float32)
    own = tl.program_id(0).to(tl.int64)
    for later in range(0, tl.cdiv(rows, BM) - tl.program_id(0), tl.num_programs(0)):
        first = (own + later) * BM
        offsets = first * N + row[:, None, None] * N + column[None, :, :]
        left = tl.minimum(rows - first, BM).to(tl.int32)
        mask = (row < left)[:, None, None]
        if not EVEN:
            mask = mask & valid[None, :, :]
        y = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
        y = normed(
            y, weight, bias, statistics, first, row, left, blocks, column, valid,
            BLOCKS, LENGTH, EPS, NORM, ACTIVATION, EVEN,
        )  # fmt: skip
        y = tl.fma(y, 0.0, y)  # an infinity is NaN from here on; amax passes over NaNs
        if COPY:
            y = y * (TOP / tl.load(columns_amax + column, mask=valid, other=1.0))[None, :, :]
            store_turned(out, y, rows, first, row, left, column, valid, BM, BB * BL)
        else:
            size = tl.where(mask, tl.abs(y), 0.0)
            most = tl.maximum(most, size)
            amax = tl.max(tl.max(size, 2), 1)
            amax = tl.where(amax > FLOOR, amax, FLOOR)
            tl.store(scale + first + row, amax * (1.0 / TOP), mask=row < left)
            tl.store(out + offsets, (y * (TOP / amax)[:, None, None]).to(out.dtype.element_ty), mask=mask)
    if amaxes is not None:
        tl.store(amaxes + own * N + column, tl.max(most, 0), mask=valid)


# ---------------------------------------------------------------- its launches


def launches(call: NormQuantizeBoth[Tensor], outputs: NormedBoth[Tensor], arch: str) -> list[Launch]:
    """Rows and the columns' amaxes in parts; those of all; the transposed copy. x contiguous."""
    x, weight, bias, row = call.x, call.weight, call.bias, call.row
    out, scale, copy, copy_scale, statistics = outputs
    rows, n = x.shape
    length = row.block or n
    bb, bl = triton.next_power_of_2(n // length), triton.next_power_of_2(length)
    bm, warps = tile(rows, bb * bl, arch, 32, 8)  # maxima take registers too
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
    bm, warps = tile(rows, bb * bl, arch, 32, 8 if arch.startswith("gfx") else 16)  # whole sectors of the copy
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
    """What the kernels write."""
    rows, n = call.x.shape
    out, scale, statistics = norm_quantize.empty_outputs(plain(call, call.row.dtype))
    return NormedBoth(out, scale, out.new_empty((n, rows)), scale.new_empty((n, 1)), statistics)


def specimens(arch: str) -> list[Specimen]:
    """At the field's shapes; every launch of the op."""
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
