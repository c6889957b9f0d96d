"""The Triton kernel of loka::gemm_norm: a tile of the product, with everything that follows in its epilogue."""

from __future__ import annotations

import triton
import triton.language as tl

from loka_compile.kernels import ptx
from loka_compile.kernels.norm_quantize.norm_quantize_kernel import activated


@triton.jit
def of_columns(
    vector,
    column,
    valid,
    EVEN: tl.constexpr,
    PAIRS: tl.constexpr,
    BOUNDED: tl.constexpr = False,
    GAIN: tl.constexpr = 1.0,
):
    """A vector over the columns times GAIN: (1, blocks, length) in float32, or packed into pairs. BOUNDED: values of
    1e37 or more become NaN."""
    if PAIRS:
        x = tl.load(vector + tl.reshape(column, (column.shape[0], column.shape[1] // 2, 2))).to(tl.float32)
    elif EVEN:
        x = tl.load(vector + column[:, :, None]).to(tl.float32)
    else:
        x = tl.load(vector + column[:, :, None], mask=valid[:, :, None], other=0.0).to(tl.float32)
    if BOUNDED:
        x = tl.where(tl.abs(x) < 1e37, x, float("nan"))
    if GAIN != 1.0:
        x *= GAIN
    if PAIRS:
        low, high = tl.split(x)
        x = ptx.pair(low, high)[:, :, None]
    if vector.dtype.element_ty == tl.float32 and not BOUNDED:
        out = tl.reshape(x, (x.shape[0], x.shape[1]))
    else:
        out = tl.sum(x, 2)  # a sum over one value: it makes threads share the work above instead of its operands
    return out[None, :, :]


@triton.jit
def affine(
    y, weight, shift, column, valid, EVEN: tl.constexpr, PAIRS: tl.constexpr, BOUNDED: tl.constexpr, GAIN: tl.constexpr
):
    """y * weight + shift * GAIN; either may be None."""
    if PAIRS and weight is not None and shift is not None:
        scales = of_columns(weight, column, valid, EVEN, PAIRS, BOUNDED)
        added = of_columns(shift, column, valid, EVEN, PAIRS, BOUNDED, GAIN)
        # both are read from shared memory side by side; else one would wait in registers for the other
        both = tl.sum(tl.join(scales, added)[:, :, :, :, None], 4)
        scales, added = tl.split(both)
        y = ptx.times_plus_columns(y, scales, added, PAIRS)
    elif weight is not None:
        y = ptx.times_columns(y, of_columns(weight, column, valid, EVEN, PAIRS, BOUNDED), PAIRS)
    if shift is not None and not (PAIRS and weight is not None):
        y = ptx.plus_columns(y, of_columns(shift, column, valid, EVEN, PAIRS, BOUNDED, GAIN), PAIRS)
    return y


@triton.jit
def load_tile(x, m, n, M, N: tl.constexpr, STEP: tl.constexpr, TMA: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """A tile of x in float32, (BM, BN); 0 beyond the edges."""
    if TMA:
        tile = x.load([m, n])
    else:
        row, column = tl.arange(0, BM)[:, None], tl.arange(0, BN)[None, :]
        mask = (row < M - m) & (column < tl.minimum(N - n, STEP))
        tile = tl.load(x + m.to(tl.int64) * N + n + row * N + column, mask=mask, other=0.0)
    return tile.to(tl.float32)


@triton.jit
def store_tile(
    out, y, m, n, M, N: tl.constexpr, STEP: tl.constexpr, TMA: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):
    """Store the tile, rounded to out's dtype."""
    if TMA:
        out.store([m, n], tl.reshape(y, (BM, BN)).to(out.dtype))
    else:
        row, column = tl.arange(0, BM)[:, None], tl.arange(0, BN)[None, :]
        mask = row < M - m
        if N % STEP != 0 or STEP != BN:
            mask = mask & (column < tl.minimum(N - n, STEP))
        at = out + m.to(tl.int64) * N + n + row * N + column
        tl.store(at, tl.reshape(y, (BM, BN)).to(out.dtype.element_ty), mask=mask)


@triton.jit
def gemm_norm_kernel(
    a, b, a_scale, b_scale, bias, residual, weight, shift, given, out, scale, statistics, product, M,
    N: tl.constexpr, K: tl.constexpr, LENGTH: tl.constexpr, STEP: tl.constexpr, EPS: tl.constexpr,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, TOP: tl.constexpr, FLOOR: tl.constexpr, GUARD: tl.constexpr,
    ONE_B_SCALE: tl.constexpr, UPCAST: tl.constexpr, TMA: tl.constexpr, TMA_OUT: tl.constexpr,
    TMA_RESIDUAL: tl.constexpr, SWAP: tl.constexpr, TURN: tl.constexpr, ONE_PASS: tl.constexpr, BOUNDED: tl.constexpr,
    PTX: tl.constexpr,
    BM: tl.constexpr, BB: tl.constexpr, BL: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One tile: BM rows by BB blocks of BL columns. Programs: axis 0 counts rows' tiles, axis 1 columns' tiles, STEP
    columns apart (STEP < BB * BL if a block is no power of two).

    The trick: p is kept as y * row. A factor a row is applied only at the end, because a norm of a multiple differs
    from the norm in its eps alone.

    TOP: the largest FP8 value, 0 if out has no scale.
    GUARD: an infinity may come out of the activation.
    BOUNDED: none may, because of_columns made NaN of weights and shifts of 1e37 or more.
    ONE_PASS: `layer` sums values and squares in one pass, exact enough for FP8.
    UPCAST: the interpreter's bfloat16 product is wrong, so it multiplies in float32.
    SWAP: the tensor cores compute the transposed tile, because BM is small.
    TURN: b's rows come reordered, so that a Hopper thread holds 16 neighbouring columns (gemm_norm_launch.turned).
    PTX: the chip's level (ptx.py); the conversion to FP8 may then do the ReLU.
    """
    BN: tl.constexpr = BB * BL
    EVEN: tl.constexpr = N % STEP == 0 and STEP == BN
    PAIRS: tl.constexpr = EVEN and BM >= 32 and PTX >= ptx.PACKED  # 16 rows spill
    m, n = tl.program_id(0) * BM, tl.program_id(1) * STEP
    rows, flat = m + tl.arange(0, BM), n + tl.arange(0, BN)
    if not TMA:
        k = tl.arange(0, BK)
        a_at = a + rows.to(tl.int64)[:, None] * K + k[None, :]
        b_at = b + flat[:, None] * K + k[None, :]
    total = tl.zeros((BN, BM) if SWAP else (BM, BN), tl.float32)
    for start in range(0, K, BK):
        if TMA:
            x = a.load([m, start])
            if TURN:
                w = tl.reshape(b.load([n // 64, 0, 0, 0, start]), (BN, BK))
            else:
                w = b.load([n, start])
        elif K % BK == 0 and EVEN:
            x, w = tl.load(a_at + start, mask=(rows < M)[:, None], other=0.0), tl.load(b_at + start)
        else:
            there = (k < K - start)[None, :]
            x = tl.load(a_at + start, mask=(rows < M)[:, None] & there, other=0.0)
            w = tl.load(b_at + start, mask=(flat < N)[:, None] & there, other=0.0)
        if UPCAST:
            x, w = x.to(tl.float32), w.to(tl.float32)
        if SWAP:
            total = tl.dot(w, x.T, total)
        else:
            total = tl.dot(x, w.T, total)
    if SWAP:
        total = total.T
    if TURN:  # in every 64 columns, the tile's 8 j + 2 t + e is the product's 16 t + 2 j + e
        total = tl.permute(tl.reshape(total, (BM, BN // 64, 8, 4, 2)), (0, 1, 3, 2, 4))
    y = tl.reshape(total, (BM, BB, BL))
    column = n + tl.arange(0, BB)[:, None] * BL + tl.arange(0, BL)[None, :]
    valid = column < tl.minimum(N, n + STEP)

    SWISH: tl.constexpr = ACTIVATION == "silu" and TOP != 0.0 and PTX != 0
    GAIN: tl.constexpr = 0.5 if SWISH else 1.0
    # p is y * row
    row = tl.full((BM,), 1.0, tl.float32)
    if a_scale is not None:
        row = tl.load(a_scale + rows, mask=rows < M, other=0.0)
    if b_scale is not None:
        if ONE_B_SCALE:
            row *= tl.load(b_scale)
        elif NORM == "layer" and not PAIRS:
            # fma instead of a product: a product would be contracted with the mean, and keep both operands alive
            y = tl.fma(y, of_columns(b_scale, column, valid, EVEN, PAIRS), 0.0)
        else:
            y = ptx.times_columns(y, of_columns(b_scale, column, valid, EVEN, PAIRS), PAIRS)
    if bias is not None:
        y = ptx.times(y, row[:, None, None], PAIRS)
        y = ptx.plus_columns(y, of_columns(bias, column, valid, EVEN, PAIRS), PAIRS)
        row = tl.full((BM,), 1.0, tl.float32)
    if residual is not None:
        tile = load_tile(residual, m, n, M, N, STEP, TMA_RESIDUAL, BM, BN)
        y = y * row[:, None, None] + tl.reshape(tile, (BM, BB, BL))
        row = tl.full((BM,), 1.0, tl.float32)
    if STEP != BN:
        y = tl.where(valid[None, :, :], y, 0.0)
    if product is not None:
        store_tile(product, y * row[:, None, None], m, n, M, N, STEP, TMA_OUT, BM, BN)

    factor = tl.broadcast_to(row[:, None], (BM, BB))
    if NORM == "layer":
        if ONE_PASS:
            mean = tl.sum(y, 2) * (1.0 / LENGTH)
            squares = tl.maximum(tl.sum(y * y, 2) - mean * mean * LENGTH, 0.0)
        else:
            mean = tl.sum(y, 2) * (1.0 / LENGTH)
            y = ptx.plus(y, -mean[:, :, None], PAIRS)
            if not EVEN:
                y = tl.where(valid[None, :, :], y, 0.0)
            squares = tl.sum(y * y, 2)
    elif NORM != "none":
        squares = tl.sum(y * y, 2)
    if NORM != "none":
        squares = squares * factor * factor
        if statistics is not None:
            S: tl.constexpr = (N + LENGTH - 1) // LENGTH
            block = n // LENGTH + tl.arange(0, BB)
            at = statistics + rows.to(tl.int64)[:, None] * (2 * S if NORM == "layer" else S) + block[None, :]
            there = (rows < M)[:, None] & (block < S)[None, :]
        if NORM == "lazy":
            tl.store(at, squares, mask=there)
        else:
            rstd = tl.rsqrt(squares * (1.0 / LENGTH) + EPS)
            if statistics is not None:
                if NORM == "layer":
                    tl.store(at, mean * factor, mask=there)
                    at += S
                tl.store(at, rstd, mask=there)
            factor *= rstd
            if NORM == "layer" and ONE_PASS:
                factor *= GAIN
                y = ptx.times_plus(y, factor[:, :, None], (mean * -factor)[:, :, None], PAIRS)
                if not EVEN:
                    y = tl.where(valid[None, :, :], y, 0.0)
                factor = tl.full((BM, BB), 1.0, tl.float32)

    RELU: tl.constexpr = ACTIVATION == "relu" and NORM != "none" and NORM != "lazy" and (weight is None or BOUNDED)
    CLIPPED: tl.constexpr = RELU and TOP != 0.0 and PTX >= ptx.CLIPS
    WANTED: tl.constexpr = shift is not None or (ACTIVATION != "none" and ACTIVATION != "relu")
    if WANTED and not (NORM == "layer" and ONE_PASS):
        y = ptx.times(y, (factor * GAIN)[:, :, None], PAIRS)
        factor = tl.full((BM, BB), 1.0, tl.float32)
    y = affine(y, weight, shift, column, valid, EVEN, PAIRS, BOUNDED, GAIN)
    if SWISH:
        y = ptx.swish_of_twice(y, PTX, PAIRS)
    elif RELU and not CLIPPED and shift is None and not (NORM == "layer" and ONE_PASS):
        y = tl.maximum(y, 0.0)  # a NaN lost here stays: its row's factor, which is not in y yet, is NaN too
    elif not CLIPPED:
        y = activated(y, ACTIVATION, PAIRS)

    if TOP != 0.0:
        if GUARD:
            y = tl.fma(y, 0.0, y)  # inf * 0 + inf: an infinity becomes NaN
        if given is not None:
            y = ptx.times(y, (factor * (1.0 / tl.load(given)))[:, :, None], PAIRS)
            y = tl.maximum(y, -TOP, propagate_nan=tl.PropagateNan.ALL)
            y = tl.minimum(y, TOP, propagate_nan=tl.PropagateNan.ALL)
        else:
            amax = tl.max(tl.max(y if CLIPPED else tl.abs(y), 2) * factor, 1)
            amax = tl.where(amax > FLOOR, amax, FLOOR)
            tl.store(scale + rows, amax * (1.0 / TOP), mask=rows < M)
            y = ptx.times(y, (factor * (TOP / amax)[:, None])[:, :, None], PAIRS)
        if CLIPPED:
            y = ptx.to_fp8_above_zero(y, TOP > 1000)
    else:
        y = ptx.times(y, factor[:, :, None], PAIRS)
    store_tile(out, y, m, n, M, N, STEP, TMA_OUT, BM, BN)
