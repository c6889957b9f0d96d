"""The Triton kernel of loka::gemm_norm: a tile of the product, and in its epilogue all that follows."""

from __future__ import annotations

import triton
import triton.language as tl

from loka_compile.kernels.norm_quantize_kernel import activated


@triton.jit
def of_columns(vector, column, valid, EVEN: tl.constexpr, BOUNDED: tl.constexpr = False):
    """A vector over the columns in float32, (1, blocks, length). BOUNDED: NaN where it is 1e37 or more."""
    if vector.dtype.element_ty == tl.float32 and not BOUNDED:
        return tl.load(vector + column, mask=None if EVEN else valid, other=None if EVEN else 0.0)[None, :, :]
    if EVEN:
        x = tl.load(vector + column[:, :, None]).to(tl.float32)
    else:
        x = tl.load(vector + column[:, :, None], mask=valid[:, :, None], other=0.0).to(tl.float32)
    if BOUNDED:
        x = tl.where(tl.abs(x) < 1e37, x, float("nan"))
    return tl.sum(x, 2)[None, :, :]  # a sum of one: so that threads share the work above, not its operands


@triton.jit
def load_tile(x, m, n, M, N: tl.constexpr, STEP: tl.constexpr, TMA: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """In float32, (BM, BN); 0 beyond the edges."""
    if TMA:
        tile = x.load([m, n])
    else:
        row, column = tl.arange(0, BM)[:, None], tl.arange(0, BN)[None, :]
        mask = (row < M - m) & (column < tl.minimum(N - n, STEP))
        tile = tl.load(x + m.to(tl.int64) * N + n + row * N + column, mask=mask, other=0.0)
    return tile.to(tl.float32)


@triton.jit
def store_tile(out, y, m, n, M, N: tl.constexpr, STEP: tl.constexpr, TMA: tl.constexpr, BM: tl.constexpr,
               BN: tl.constexpr):  # fmt: skip
    """Rounds to out's dtype."""
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
    BM: tl.constexpr, BB: tl.constexpr, BL: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A tile is BM rows by BB blocks of BL columns; the next one begins STEP columns on. TOP is 0 where out is not
    scaled. GUARD: an infinity may come out of the activation. BOUNDED: none may, as weight and shift are NaN where they
    are 1e37 or more. ONE_PASS: `layer` takes mean and mean of squares together, exact enough for FP8. UPCAST: for the
    interpreter, whose bfloat16 product is wrong. SWAP: the tensor cores compute the tile's transpose, whose rows are
    few. TURN: b's rows come in the order that leaves a thread of Hopper's with 16 neighbouring columns."""
    BN: tl.constexpr = BB * BL
    EVEN: tl.constexpr = N % STEP == 0 and STEP == BN
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
    if TURN:  # columns 8 j + 2 t + e of every 64 are 16 t + 2 j + e
        total = tl.permute(tl.reshape(total, (BM, BN // 64, 8, 4, 2)), (0, 1, 3, 2, 4))
    y = tl.reshape(total, (BM, BB, BL))
    column = n + tl.arange(0, BB)[:, None] * BL + tl.arange(0, BL)[None, :]
    valid = column < tl.minimum(N, n + STEP)

    # p is y * row: a row's factor stays out of y until the end, as the norm of a multiple only differs by its eps
    row = tl.full((BM,), 1.0, tl.float32)
    if a_scale is not None:
        row = tl.load(a_scale + rows, mask=rows < M, other=0.0)
    if b_scale is not None:
        if ONE_B_SCALE:
            row *= tl.load(b_scale)
        elif NORM == "layer":
            # not a plain product: with the mean it would become one operation, which keeps both its operands alive
            y = tl.fma(y, of_columns(b_scale, column, valid, EVEN), 0.0)
        else:
            y = y * of_columns(b_scale, column, valid, EVEN)
    if bias is not None:
        y = y * row[:, None, None] + of_columns(bias, column, valid, EVEN)
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
            y = y - mean[:, :, None]
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
                y = y * factor[:, :, None] - (mean * factor)[:, :, None]
                if not EVEN:
                    y = tl.where(valid[None, :, :], y, 0.0)
                factor = tl.full((BM, BB), 1.0, tl.float32)

    if weight is not None:
        y = y * of_columns(weight, column, valid, EVEN, BOUNDED)
    if shift is not None or (ACTIVATION != "none" and ACTIVATION != "relu"):
        y = y * factor[:, :, None]
        factor = tl.full((BM, BB), 1.0, tl.float32)
        if shift is not None:
            y = y + of_columns(shift, column, valid, EVEN, BOUNDED)
    if ACTIVATION == "relu" and NORM != "none" and NORM != "lazy" and (weight is None or BOUNDED):
        y = tl.maximum(y, 0.0)  # its row's factor is NaN where y is
    else:
        y = activated(y, ACTIVATION)

    if TOP != 0.0:
        if GUARD:
            y = tl.fma(y, 0.0, y)  # an infinity is NaN from here on
        if given is not None:
            y = y * (factor * (1.0 / tl.load(given)))[:, :, None]
            y = tl.maximum(y, -TOP, propagate_nan=tl.PropagateNan.ALL)
            y = tl.minimum(y, TOP, propagate_nan=tl.PropagateNan.ALL)
        else:
            amax = tl.max(tl.max(tl.abs(y), 2) * factor, 1)
            amax = tl.where(amax > FLOOR, amax, FLOOR)
            tl.store(scale + rows, amax * (1.0 / TOP), mask=rows < M)
            y = y * (factor * (TOP / amax)[:, None])[:, :, None]
    else:
        y = y * factor[:, :, None]
    store_tile(out, y, m, n, M, N, STEP, TMA_OUT, BM, BN)
