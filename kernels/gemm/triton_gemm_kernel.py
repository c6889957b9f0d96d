"""The Triton kernels of loka::triton_gemm: a tile of a product, and the sum of a split contraction's parts."""

from __future__ import annotations

import triton
import triton.language as tl

from loka_compile.kernels.norm_quantize.norm_quantize_kernel import activated, store_vector

ONES = tl.constexpr(16)
"""The fewest columns that tensor cores multiply."""


@triton.jit
def operand(
    x,
    at,
    z,
    row,
    k,
    left,
    TMA: tl.constexpr,
    FLIP: tl.constexpr,
    EVEN_K: tl.constexpr,
    ROWS: tl.constexpr,
    BK: tl.constexpr,
):
    """A tile (ROWS, BK) of an operand, zero beyond K.

    at: pointers to its values, used without TMA.
    left: values of K that are left.
    FLIP: it is stored with K as its first dimension.
    """
    if TMA and FLIP:
        tile = tl.reshape(x.load([z, k, row]), (BK, ROWS)).T
    elif TMA:
        tile = tl.reshape(x.load([z, row, k]), (ROWS, BK))
    elif EVEN_K:
        tile = tl.load(at)
    else:
        tile = tl.load(at, mask=(tl.arange(0, BK) < left)[None, :], other=0.0)
    return tile


@triton.jit
def triton_gemm_kernel(
    a, b, a_scale, b_scale, bias, out, sums, M, K, a_scale_z, a_scale_m, a_scale_k, b_scale_z, b_scale_n, b_scale_k,
    N: tl.constexpr, TRIPS: tl.constexpr, SPLITS: tl.constexpr, ATOMIC: tl.constexpr, A_SCALING: tl.constexpr,
    B_SCALING: tl.constexpr, PROMOTE: tl.constexpr, ACTIVATION: tl.constexpr, TMA: tl.constexpr,
    TMA_OUT: tl.constexpr, FLIP_A: tl.constexpr, FLIP_B: tl.constexpr, EVEN_M: tl.constexpr, EVEN_K: tl.constexpr,
    WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One tile (BM, BN) of one matrix of the batch, or of one part of its contraction.

    Programs: axis 0 counts tiles row by row, axis 1 counts batch * SPLITS, parts of a matrix side by side.
    out: (batch * SPLITS, M, N); with ATOMIC (batch, M, N).
    sums: (batch * SPLITS, M), a summed along K; the trick is a product of a with ones, because the tensor cores have a
        at hand.
    TRIPS: steps along K; 0 if they are computed here.
    PROMOTE: each step's products are added outside the tensor cores.
    FLIP_A, FLIP_B: stored as (K, M), (K, N).
    WIDE: store 128 bits a thread (AMD).
    """
    TN: tl.constexpr = (N + BN - 1) // BN
    m, n = tl.program_id(0) // TN * BM, tl.program_id(0) % TN * BN
    z, matrix, first, steps = tl.program_id(1), tl.program_id(1), tl.program_id(1) * 0, TRIPS
    if TRIPS == 0:
        steps = tl.cdiv(K, BK)
        matrix, each = z // SPLITS, tl.cdiv(steps, SPLITS)
        first = z % SPLITS * each
        steps = tl.minimum(each, steps - first)
        first = first * BK
    # rows beyond the edge read the last row again: their results are not stored, and loads need no mask
    row, column, k = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    if not EVEN_M:
        row = tl.minimum(row, M - 1 - m)
    if N % BN != 0:
        column = tl.minimum(column, N - 1 - n)
    a_row, a_k, b_column, b_k = K, 1, K, 1
    if FLIP_A:
        a_row, a_k = 1, M
    if FLIP_B:
        b_column, b_k = 1, N
    a_at, b_at = a, b
    if not TMA:
        a_at = a + (matrix.to(tl.int64) * M * K + m.to(tl.int64) * a_row + first.to(tl.int64) * a_k)
        a_at = a_at + (row[:, None] * a_row + k[None, :] * a_k)
        b_at = b + (matrix.to(tl.int64) * N * K + n.to(tl.int64) * b_column + first.to(tl.int64) * b_k)
        b_at = b_at + (column[:, None] * b_column + k[None, :] * b_k)
    if A_SCALING == "block" or A_SCALING == "row":
        a_scale += matrix.to(tl.int64) * a_scale_z + (m + row) * a_scale_m
    if B_SCALING == "block":
        b_scale += matrix.to(tl.int64) * b_scale_z + (n // 128) * b_scale_n
    if B_SCALING == "row":
        b_scale += matrix.to(tl.int64) * b_scale_z + (n + column) * b_scale_n

    total = tl.zeros((BM, BN), tl.float32)
    if sums is not None:
        alike, ones = tl.zeros((BM, ONES), tl.float32), tl.full((BK, ONES), 1.0, a.dtype if TMA else a.dtype.element_ty)
    for step in range(0, steps):
        start = first + step * BK
        x = operand(a, a_at, matrix, m, start, K - start, TMA, FLIP_A, EVEN_K, BM, BK)
        w = operand(b, b_at, matrix, n, start, K - start, TMA, FLIP_B, EVEN_K, BN, BK)
        if not TMA:
            a_at += BK * a_k
            b_at += BK * b_k
        if A_SCALING == "block":
            block = start // 128
            factor = tl.load(a_scale + block * a_scale_k) * tl.load(b_scale + block * b_scale_k)
            total += tl.dot(x, w.T) * factor[:, None]
        elif PROMOTE:
            total += tl.dot(x, w.T)
        else:
            total = tl.dot(x, w.T, total)
        if sums is not None:
            alike = tl.dot(x, ones, alike)

    if sums is not None:
        store_vector(sums + z.to(tl.int64) * M, tl.sum(alike, 1) * (1.0 / ONES), m, M, EVEN_M, n == 0)
    y = total
    if A_SCALING == "tensor":
        one = tl.load(a_scale)
        if B_SCALING == "tensor":
            one *= tl.load(b_scale)
        y = y * one
    elif B_SCALING == "tensor":
        y = y * tl.load(b_scale)
    if A_SCALING == "row":
        y = y * tl.load(a_scale)[:, None]
    if B_SCALING == "row":
        y = y * tl.load(b_scale)[None, :]
    if bias is not None:
        y = y + tl.load(bias + n + column).to(tl.float32)[None, :]
    y = activated(y, ACTIVATION)

    if TMA_OUT:
        out.store([z, m, n], tl.reshape(y.to(out.dtype), (1, BM, BN)))
    else:
        to = matrix if ATOMIC else z
        at = out + (to.to(tl.int64) * M * N + m.to(tl.int64) * N + n)
        y = y.to(out.dtype.element_ty)
        if WIDE:
            r, c = tl.arange(0, BM)[:, None, None], tl.arange(0, BN // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]
            y, c = tl.reshape(y, (BM, BN // 8, 8)), c[None, :, :]
        else:
            r, c = tl.arange(0, BM)[:, None], tl.arange(0, BN)[None, :]
        there = r < (BM if EVEN_M else M - m)
        if N % BN != 0:
            there = there & (c < N - n)
        if ATOMIC:
            tl.atomic_add(at + (r * N + c), y, mask=there, sem="relaxed")
        else:
            tl.store(at + (r * N + c), y, mask=there)


@triton.jit
def finish_kernel(
    parts,
    bias,
    out,
    sums,
    sum_out,
    SIZE,
    N: tl.constexpr,
    SPLITS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    EVEN: tl.constexpr,
    STEP: tl.constexpr,
):
    """Adds the parts of a split contraction, (SPLITS, SIZE) of every matrix of the batch, in order; likewise the parts
    of the sums, (SPLITS, SIZE / N). EVEN: the number of sums is even (see store_vector)."""
    z = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * STEP + tl.arange(0, STEP)
    there = at < SIZE
    y = tl.zeros((STEP,), tl.float32)
    for part in range(SPLITS):
        y += tl.load(parts + (z * SPLITS + part) * SIZE + at, mask=there, other=0.0)
    if bias is not None:
        y += tl.load(bias + at % N, mask=there, other=0.0).to(tl.float32)
    tl.store(out + z * SIZE + at, activated(y, ACTIVATION).to(out.dtype.element_ty), mask=there)
    if sums is not None:
        y = tl.zeros((STEP,), tl.float32)
        for part in range(SPLITS):
            y += tl.load(sums + (z * SPLITS + part) * (SIZE // N) + at, mask=at < SIZE // N, other=0.0)
        store_vector(sum_out + z * (SIZE // N), y, tl.program_id(0) * STEP, SIZE // N, EVEN, True)
