"""The Triton kernels of loka::norm_quantize_backward: gradients of rows, and the second stage of sums over rows."""

from __future__ import annotations

import triton
import triton.language as tl

from loka_compile.kernels.norm_quantize.norm_quantize_kernel import store_vector, upper_tail


@triton.jit
def slope(z, ACTIVATION: tl.constexpr):
    """The activation's derivative, in float32; of hard swish above -3."""
    if ACTIVATION == "silu":
        s = tl.sigmoid(z)
        return s * (1.0 + z * (1.0 - s))
    elif ACTIVATION == "hard_swish":
        return tl.where(z < 3.0, z * (1.0 / 3.0) + 0.5, 1.0)
    else:  # gelu
        size = tl.abs(z)
        tail, density = upper_tail(size), 0.3989422804014327 * tl.exp2((size * -0.7213475204444817) * size)
        return tl.where(z > 0.0, 1.0 - tail, tail) + z * density


@triton.jit
def gradient_kernel(
    grad, x, statistics, weight, bias, columns_amax, out, scale, weight_sums, bias_sums, totals, amaxes, rows,
    N: tl.constexpr, BLOCKS: tl.constexpr, NORM: tl.constexpr, ACTIVATION: tl.constexpr, GAIN: tl.constexpr,
    TOP: tl.constexpr, FLOOR: tl.constexpr, COPY: tl.constexpr, ONCE: tl.constexpr,
    BM: tl.constexpr, BB: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """x's gradient for tiles of BM rows, each BB blocks of BL values, and this program's parts of the sums over rows.

    A program walks the tiles its number, its number + number of programs, and so on; ONCE: there is a program for every
    tile. Sums stay in registers until the end.
    COPY: write only the transpose (N, rows), each of its rows scaled by its `columns_amax`.
    TOP: the largest FP8 value, 0 if out has no scale.
    """
    LENGTH: tl.constexpr = N // BLOCKS
    EVEN: tl.constexpr = BB == BLOCKS and BL == LENGTH
    row = tl.arange(0, BM)
    blocks, columns = tl.arange(0, BB), tl.arange(0, BL)
    valid = (blocks < BLOCKS)[:, None] & (columns < LENGTH)[None, :]
    column = blocks[:, None] * LENGTH + columns[None, :]  # in its row
    by_weight = tl.zeros((BM, BB, BL), tl.float32)
    by_bias = tl.zeros((BM, BB, BL), tl.float32)
    in_all = tl.zeros((BM, BB, BL), tl.float32)
    most = tl.zeros((BM, BB, BL), tl.float32)

    own = tl.program_id(0).to(tl.int64)
    end = 1 if ONCE else tl.cdiv(rows, BM) - tl.program_id(0)
    for later in range(0, end, 1 if ONCE else tl.num_programs(0)):
        first = (own + later) * BM
        offsets = first * N + row[:, None, None] * N + column[None, :, :]
        left = tl.minimum(rows - first, BM).to(tl.int32)
        mask = (row < left)[:, None, None]
        if not EVEN:
            mask = mask & valid[None, :, :]
        g = tl.load(grad + offsets, mask=mask, other=0.0).to(tl.float32) * GAIN
        n = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)

        if NORM != "none":
            S: tl.constexpr = 2 * BLOCKS if NORM == "layer" else BLOCKS
            at = statistics + first * S + row[:, None] * S + blocks[None, :]
            there = (row < left)[:, None] & (blocks < BLOCKS)[None, :]
            if NORM == "layer":
                n = n - tl.load(at, mask=there, other=0.0)[:, :, None]
                at += BLOCKS
            rstd = tl.load(at, mask=there, other=0.0)
            n = n * rstd[:, :, None]
        z = n
        if weight is not None:
            w = tl.load(weight + column, mask=valid, other=0.0).to(tl.float32)[None, :, :]
            z = z * w
        if bias is not None:
            z = z + tl.load(bias + column, mask=valid, other=0.0).to(tl.float32)[None, :, :]
        if ACTIVATION == "relu":
            g = tl.where(z <= 0.0, 0.0, g)
        elif ACTIVATION == "hard_swish":
            g = tl.where(z <= -3.0, 0.0, g * slope(z, ACTIVATION))
        elif ACTIVATION != "none":
            g = g * slope(z, ACTIVATION)
        if bias_sums is not None:
            by_bias += tl.where(mask, g, 0.0)
        if weight_sums is not None:
            by_weight += tl.where(mask, g * n, 0.0)
        if weight is not None:
            g = g * w
        if NORM != "none":
            if not EVEN:
                n, g = tl.where(mask, n, 0.0), tl.where(mask, g, 0.0)
            along = tl.sum(g * n, 2) * (1.0 / LENGTH)
            if NORM == "layer":
                mean = tl.sum(g, 2) * (1.0 / LENGTH)
                g = (g - mean[:, :, None] - n * along[:, :, None]) * rstd[:, :, None]
            else:
                g = (g - n * along[:, :, None]) * rstd[:, :, None]
        if totals is not None:
            in_all += tl.where(mask, g, 0.0)

        if TOP != 0.0:
            g = tl.fma(g, 0.0, g)  # an infinity becomes NaN, and amax skips NaN
            if COPY:
                amax = tl.load(columns_amax + column, mask=valid, other=1.0)
                g = g * (TOP / amax)[None, :, :]
            else:
                size = tl.abs(g)
                if not EVEN:
                    size = tl.where(mask, size, 0.0)
                amax = tl.max(tl.max(size, 2), 1)
                amax = tl.where(amax > FLOOR, amax, FLOOR)
                tl.store(scale + first + row, amax * (1.0 / TOP), mask=row < left)
                if amaxes is not None:
                    most = tl.maximum(most, tl.where(mask, size, 0.0))
                g = g * (TOP / amax)[:, None, None]
        if COPY:
            store_turned(out, g, rows, first, row, left, column, valid, BM, BB * BL)
        else:
            tl.store(out + offsets, g.to(out.dtype.element_ty), mask=mask)

    sums = tl.program_id(0).to(tl.int64) * N + column
    if bias_sums is not None:
        tl.store(bias_sums + sums, tl.sum(by_bias, 0), mask=valid)
    if weight_sums is not None:
        tl.store(weight_sums + sums, tl.sum(by_weight, 0), mask=valid)
    if totals is not None:
        tl.store(totals + sums, tl.sum(in_all, 0), mask=valid)
    if amaxes is not None:
        tl.store(amaxes + sums, tl.max(most, 0), mask=valid)


@triton.jit
def store_turned(out, values, rows, first, row, left, column, valid, BM: tl.constexpr, B: tl.constexpr):
    """Store a tile of BM rows and B columns into the transpose of a matrix with `rows` rows."""
    turned = tl.trans(tl.reshape(values, (BM, B)))
    flat = tl.reshape(column, (B,)).to(tl.int64)[:, None]
    there = tl.reshape(valid, (B,))[:, None] & (row < left)[None, :]
    tl.store(out + flat * rows + first + row[None, :], turned.to(out.dtype.element_ty), there)


@triton.jit
def sums_kernel(
    weight_sums,
    bias_sums,
    totals,
    amaxes,
    grad_weight,
    grad_bias,
    total,
    columns_amax,
    copy_scale,
    parts,
    N: tl.constexpr,
    TOP: tl.constexpr,
    FLOOR: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
):
    """The second stage: add all programs' parts, (parts, N), always in the same order, for BN columns."""
    column = tl.program_id(0) * BN + tl.arange(0, BN)
    part = tl.arange(0, BP)
    by_weight = tl.zeros((BP, BN), tl.float32)
    by_bias = tl.zeros((BP, BN), tl.float32)
    in_all = tl.zeros((BP, BN), tl.float32)
    most = tl.zeros((BP, BN), tl.float32)
    for start in range(0, parts, BP):
        at = (start + part).to(tl.int64)[:, None] * N + column[None, :]
        mask = (part < parts - start)[:, None] & (column < N)[None, :]
        if weight_sums is not None:
            by_weight += tl.load(weight_sums + at, mask=mask, other=0.0)
        if bias_sums is not None:
            by_bias += tl.load(bias_sums + at, mask=mask, other=0.0)
        if totals is not None:
            in_all += tl.load(totals + at, mask=mask, other=0.0)
        if amaxes is not None:
            most = tl.maximum(most, tl.load(amaxes + at, mask=mask, other=0.0))
    if weight_sums is not None:
        store_vector(grad_weight, tl.sum(by_weight, 0), tl.program_id(0) * BN, N, N % 2 == 0, True)
    if bias_sums is not None:
        store_vector(grad_bias, tl.sum(by_bias, 0), tl.program_id(0) * BN, N, N % 2 == 0, True)
    if totals is not None:
        store_vector(total, tl.sum(in_all, 0), tl.program_id(0) * BN, N, N % 2 == 0, True)
    if amaxes is not None:
        amax = tl.maximum(tl.max(most, 0), FLOOR)
        tl.store(columns_amax + column, amax, mask=column < N)
        tl.store(copy_scale + column, amax * (1.0 / TOP), mask=column < N)
