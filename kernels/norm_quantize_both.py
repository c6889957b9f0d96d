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

import torch
import triton
import triton.language as tl
from torch import Tensor

from loka_compile.kernels import norm_quantize as norms
from loka_compile.kernels.launch import Launch, Specimen, arch_of, moved
from loka_compile.kernels.norm_quantize_backward import PARTS, quantize_columns, tile
from loka_compile.kernels.norm_quantize_backward_kernel import store_turned, sums_kernel
from loka_compile.kernels.norm_quantize_kernel import normed
from loka_compile.kernels.quantize import AMAX_FLOOR

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]

# ---------------------------------------------------------------- the specification


def reference(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: str, block: int, activation: str, dtype: torch.dtype,
    eps: float, save: bool,
) -> Outputs:  # fmt: skip
    """The specification; see the module's docstring."""
    check(x, weight, bias, norm, block, activation, dtype)
    y, _, statistics = norms.reference(x, weight, bias, None, norm, block, activation, torch.float32, eps, save)
    return *norms.quantize_rows(y, None, dtype), *quantize_columns(y, dtype), statistics


def check(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: str, block: int, activation: str, dtype: torch.dtype
) -> None:
    if x.dim() != 2 or x.dtype not in norms.FLOATS or dtype not in norms.FP8:
        raise ValueError(
            f"loka::norm_quantize_both: x is (R, N) of floats and out FP8, got {x.dtype} {tuple(x.shape)} and {dtype}"
        )
    norms.check(x, weight, bias, None, norm, block, activation, dtype)


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


def launches(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, outputs: Outputs, norm: str, block: int, activation: str,
    eps: float, arch: str,
) -> list[Launch]:  # fmt: skip
    """Rows and the columns' amaxes in parts; those of all; the transposed copy. x contiguous."""
    out, scale, copy, copy_scale, statistics = outputs
    rows, n = x.shape
    length = block or n
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
            "EPS": eps,
            "NORM": norm,
            "ACTIVATION": activation,
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


@torch.library.custom_op("loka::norm_quantize_both", mutates_args=())
def norm_quantize_both(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: str, block: int, activation: str, dtype: torch.dtype,
    eps: float, save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    if not x.is_cuda or x.shape[-1] > norms.LONGEST_ROW or not x.shape[0]:
        return reference(x, weight, bias, norm, block, activation, dtype, eps, save)
    check(x, weight, bias, norm, block, activation, dtype)
    outputs = empty_outputs(x, norm, block, dtype, save)
    dense = [each if each is None else each.contiguous() for each in (x, weight, bias)]
    for each in launches(*dense, outputs, norm, block, activation, eps, arch_of(x)):  # type: ignore[arg-type]
        each.run()
    return outputs


@norm_quantize_both.register_fake
def _(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: str, block: int, activation: str, dtype: torch.dtype,
    eps: float, save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    check(x, weight, bias, norm, block, activation, dtype)
    return empty_outputs(x, norm, block, dtype, save)


def empty_outputs(x: Tensor, norm: str, block: int, dtype: torch.dtype, save: bool) -> Outputs:
    """(out, scale, copy, copy_scale, statistics)"""
    rows, n = x.shape
    out, scale, statistics = norms.empty_outputs(x, None, norm, block, dtype, save)
    return out, scale, x.new_empty((n, rows), dtype=dtype), scale.new_empty((n, 1)), statistics


def specimens(arch: str) -> list[Specimen]:
    """At the field's shapes; every launch of the op."""
    fp8 = torch.float8_e4m3fnuz if arch == "gfx942" else torch.float8_e4m3fn

    def of(norm: str, activation: str, rows: int, n: int, weights: int = 0, block: int = 0) -> list[Specimen]:
        x = torch.empty(rows, n, dtype=torch.bfloat16, device="meta")
        weight, bias = (x.new_empty(n) if weights > i else None for i in (0, 1))
        outputs = empty_outputs(x, norm, block, fp8, True)
        made = launches(x, weight, bias, outputs, norm, block, activation, 1e-6, arch)
        words = ["norm_quantize_both", norm + (f"/{block}" if block else ""), *["affine"] * (weights > 0), activation]
        name = f"{' '.join(words)} {rows}x{n}"
        listed = zip(made, ("", " sums", " copy"), strict=True)
        return [Specimen(name + what, each, (), ("wide_loads",) if not what else ()) for each, what in listed]

    return [
        *of("layer", "relu", 65536, 2048, weights=2),
        *of("rms", "silu", 65536, 512, weights=1),
        *of("rms", "hard_swish", 65536, 512, block=256),
    ]
