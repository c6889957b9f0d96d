"""The Triton kernels of loka::triton_quantize: largest magnitudes, and a tile quantized along one axis or both."""

from __future__ import annotations

import triton
import triton.language as tl

from loka_compile.kernels.norm_quantize.norm_quantize_kernel import to_int8


@triton.jit
def tile_of(x, R, C: tl.constexpr, TOP: tl.constexpr, EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """(values in float32, matrix, first row, first column) of this program's tile. For FP8, values that are not finite
    become NaN."""
    TN: tl.constexpr = (C + BN - 1) // BN
    z, m, n = tl.program_id(1).to(tl.int64), tl.program_id(0) // TN * BM, tl.program_id(0) % TN * BN
    at = x + (z * R * C + m.to(tl.int64) * C + n) + tl.arange(0, BM)[:, None] * C + tl.arange(0, BN)[None, :]
    if EVEN:
        y = tl.load(at).to(tl.float32)
    else:
        there = (tl.arange(0, BM) < R - m)[:, None] & (tl.arange(0, BN) < C - n)[None, :]
        y = tl.load(at, mask=there, other=0.0).to(tl.float32)
    if TOP != 127.0:
        y = tl.fma(y, 0.0, y)
    return y, z, m, n


@triton.jit
def amax_kernel(
    x,
    parts,
    rows,
    columns,
    R,
    C: tl.constexpr,
    TOP: tl.constexpr,
    EVEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Largest magnitudes: of the tensor in PARTS partial maxima, or of each row and each column.

    The trick: the bits of non-negative float32 values order as integers do, with NaN above all, so an integer atomic
    maximum works, in any order.
    """
    y, z, m, n = tile_of(x, R, C, TOP, EVEN, BM, BN)
    size = tl.abs(y)
    if TOP != 127.0:
        size = tl.where(size == size, size, 0.0)
    bits = size.to(tl.int32, bitcast=True)
    if parts is not None:
        tl.atomic_max(parts + (z + tl.program_id(0)) % PARTS, tl.max(tl.max(bits, 1), 0), sem="relaxed")
    else:
        row, column = m + tl.arange(0, BM), n + tl.arange(0, BN)
        tl.atomic_max(rows + z * R + row, tl.max(bits, 1), mask=row < R, sem="relaxed")
        tl.atomic_max(columns + z * C + column, tl.max(bits, 0), mask=column < C, sem="relaxed")


@triton.jit
def steps(amax, TOP: tl.constexpr, FLOOR: tl.constexpr):
    """(scale, factor for the values). A NaN stays NaN."""
    amax = tl.where(amax < FLOOR, FLOOR, amax)
    return amax * (1.0 / TOP), TOP / amax


@triton.jit
def rounded(y, like, TOP: tl.constexpr):
    """y rounded to q's dtype."""
    return to_int8(y) if TOP == 127.0 else y.to(like.dtype.element_ty)


@triton.jit
def quantize_kernel(
    x, parts, rows, columns, q, scale, t, t_scale, R, C: tl.constexpr, SCALING: tl.constexpr, TOP: tl.constexpr,
    FLOOR: tl.constexpr, PARTS: tl.constexpr, EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Quantize one tile (BM, BN); blocks and tiles are 128 long. parts, rows, columns: maxima from amax_kernel. q is
    written along -1 ("down"), t along -2 ("across"), transposed."""
    y, z, m, n = tile_of(x, R, C, TOP, EVEN, BM, BN)
    row, column = m + tl.arange(0, BM), n + tl.arange(0, BN)
    R_BLOCKS, C_BLOCKS = (R + 127) // 128, (C + 127) // 128
    if SCALING == "tensor":
        amax = tl.max(tl.load(parts + tl.arange(0, PARTS)), 0).to(tl.float32, bitcast=True)
        step, factor = steps(amax, TOP, FLOOR)
        if (tl.program_id(0) == 0) & (z == 0):
            tl.store(scale, step)
        down = rounded(y * factor, q, TOP)
        across = down
    elif SCALING == "tile":
        step, factor = steps(tl.max(tl.max(tl.abs(y), 1), 0), TOP, FLOOR)
        tl.store(scale + (z * R_BLOCKS + m // 128) * C_BLOCKS + n // 128, step)
        down = rounded(y * factor, q, TOP)
        across = down
    elif SCALING == "row":
        amax = tl.load(rows + z * R + row, mask=row < R, other=0).to(tl.float32, bitcast=True)
        step, factor = steps(amax, TOP, FLOOR)
        tl.store(scale + z * R + row, step, mask=(row < R) & (n == 0))
        down = rounded(y * factor[:, None], q, TOP)
        amax = tl.load(columns + z * C + column, mask=column < C, other=0).to(tl.float32, bitcast=True)
        step, factor = steps(amax, TOP, FLOOR)
        tl.store(t_scale + z * C + column, step, mask=(column < C) & (m == 0))
        across = rounded(y * factor[None, :], q, TOP)
    else:
        step, factor = steps(tl.max(tl.abs(y), 1), TOP, FLOOR)
        tl.store(scale + (z * R + row) * C_BLOCKS + n // 128, step, mask=row < R)
        down = rounded(y * factor[:, None], q, TOP)
        across = down
        if t is not None:
            step, factor = steps(tl.max(tl.abs(y), 0), TOP, FLOOR)
            tl.store(t_scale + (z * R_BLOCKS + m // 128) * C + column, step, mask=column < C)
            across = rounded(y * factor[None, :], q, TOP)
    r, c = tl.arange(0, BM), tl.arange(0, BN)
    at = q + (z * R * C + m.to(tl.int64) * C + n) + r[:, None] * C + c[None, :]
    if EVEN:
        tl.store(at, down)
    else:
        tl.store(at, down, mask=(r < R - m)[:, None] & (c < C - n)[None, :])
    if t is not None:
        at = t + (z * R * C + n.to(tl.int64) * R + m) + c[:, None] * R + r[None, :]
        if EVEN:
            tl.store(at, across.T)
        else:
            tl.store(at, across.T, mask=(c < C - n)[:, None] & (r < R - m)[None, :])
