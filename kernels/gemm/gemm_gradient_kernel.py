"""The Triton kernel of loka::gemm_gradient: a tile of the product, masked by the ReLU that made the linear's input."""

from __future__ import annotations

import triton
import triton.language as tl

from loka_compile.kernels.gemm.triton_gemm_kernel import operand


@triton.jit
def gemm_gradient_kernel(
    grad, weight, x, out, totals, M, K,
    N: tl.constexpr, GAIN: tl.constexpr, TMA: tl.constexpr, TMA_OUT: tl.constexpr, EVEN_M: tl.constexpr,
    EVEN_K: tl.constexpr, UPCAST: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One tile (BM, BN) of out.

    totals: (tiles of rows, N) float32, each tile's sums over its rows; None without sums.
    WIDE: store 128 bits a thread (AMD).
    UPCAST: the interpreter's 16-bit product is wrong, so it multiplies in float32.
    """
    TN: tl.constexpr = (N + BN - 1) // BN
    m, n = tl.program_id(0) // TN * BM, tl.program_id(0) % TN * BN
    r, c, k = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    # rows beyond the edge read the last row again: their results are not stored, and loads need no mask
    row = r if EVEN_M else tl.minimum(r, M - 1 - m)
    column = c if N % BN == 0 else tl.minimum(c, N - 1 - n)
    a_at, b_at = grad, weight
    if not TMA:
        a_at = grad + m.to(tl.int64) * K + (row[:, None] * K + k[None, :])
        b_at = weight + n + (column[:, None] + k[None, :] * N)
    acc = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        a = operand(grad, a_at, 0, m, start, K - start, TMA, False, EVEN_K, BM, BK)
        b = operand(weight, b_at, 0, n, start, K - start, TMA, True, EVEN_K, BN, BK)
        if not TMA:
            a_at += BK
            b_at += BK * N
        if UPCAST:
            a, b = a.to(tl.float32), b.to(tl.float32)
        acc = tl.dot(a, b.T, acc)

    there = (r < (BM if EVEN_M else M - m))[:, None] & (c < N - n)[None, :]
    offsets = m.to(tl.int64) * N + n + (r[:, None] * N + c[None, :])
    made = tl.load(x + offsets, mask=there, other=0.0)
    y = tl.where(made.to(tl.float32) <= 0.0, 0.0, acc * GAIN)
    if totals is not None:
        sums = tl.sum(tl.where(there, y, 0.0), 0)
        tl.store(totals + (m // BM).to(tl.int64) * N + n + c, sums, mask=c < N - n)
    if TMA_OUT:
        out.store([m, n], y.to(out.dtype))
    elif WIDE:
        eighths = (tl.arange(0, BN // 8)[:, None] * 8 + tl.arange(0, 8)[None, :])[None, :, :]
        at = out + (m.to(tl.int64) * N + n) + (r[:, None, None] * N + eighths)
        y = tl.reshape(y, (BM, BN // 8, 8)).to(out.dtype.element_ty)
        tl.store(at, y, mask=(r < (BM if EVEN_M else M - m))[:, None, None] & (eighths < N - n))
    else:
        tl.store(out + offsets, y.to(out.dtype.element_ty), mask=there)
