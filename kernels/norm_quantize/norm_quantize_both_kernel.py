"""The Triton kernel of loka::norm_quantize_both: rows quantized, or their transpose."""

from __future__ import annotations

import triton
import triton.language as tl

from loka_compile.kernels.norm_quantize.norm_quantize_backward_kernel import store_turned
from loka_compile.kernels.norm_quantize.norm_quantize_kernel import normed


@triton.jit
def both_kernel(
    x, weight, bias, columns_amax, out, scale, statistics, amaxes, rows,
    N: tl.constexpr, BLOCKS: tl.constexpr, EPS: tl.constexpr, NORM: tl.constexpr, ACTIVATION: tl.constexpr,
    TOP: tl.constexpr, FLOOR: tl.constexpr, COPY: tl.constexpr, BM: tl.constexpr, BB: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Tiles of BM rows, each BB blocks of BL values, and this program's part of the columns' largest magnitudes, in
    `amaxes`.

    A program walks the tiles its number, its number + number of programs, and so on. COPY: write only the transpose,
    each of its rows scaled by its `columns_amax`.
    """
    LENGTH: tl.constexpr = N // BLOCKS
    EVEN: tl.constexpr = BB == BLOCKS and BL == LENGTH
    row = tl.arange(0, BM)
    blocks, columns = tl.arange(0, BB), tl.arange(0, BL)
    valid = (blocks < BLOCKS)[:, None] & (columns < LENGTH)[None, :]
    column = blocks[:, None] * LENGTH + columns[None, :]  # in its row
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
            y,
            weight,
            bias,
            statistics,
            first,
            row,
            left,
            blocks,
            column,
            valid,
            BLOCKS,
            LENGTH,
            EPS,
            NORM,
            ACTIVATION,
            EVEN,
        )
        y = tl.fma(y, 0.0, y)  # an infinity becomes NaN, and amax skips NaN
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
