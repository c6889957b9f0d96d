"""The Triton kernel of loka::fm: one sample a program, its tokens held at once."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from loka_compile.kernels.launch import Launch, moved


@triton.jit
def columns_of(y, at, N: tl.constexpr, K: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """(offsets, mask) of BK columns of a sample's (N, K), in the shape (BN, BK / 8, 8)."""
    token = tl.arange(0, BN)[:, None, None]
    column = at + tl.arange(0, BK // 8)[None, :, None] * 8 + tl.arange(0, 8)[None, None, :]
    return token * K + column, (token < N) & (column < K)


@triton.jit
def compressed(pairs, y, at, N: tl.constexpr, K: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """BK columns of the factorization machine, (BN, BK / 8, 8): Triton stores two dimensions in 64 bits a thread on
    AMD."""
    token, column = tl.arange(0, BN)[:, None], at + tl.arange(0, BK)[None, :]
    there = (token < N) & (column < K)
    return tl.reshape(tl.dot(pairs, tl.load(y + token * K + column, mask=there, other=0.0)), (BN, BK // 8, 8))


@triton.jit
def total(x):
    """The sum of a tile."""
    return tl.sum(tl.sum(tl.sum(x, 2), 1), 0)


@triton.jit
def fm_kernel(
    x,
    y,
    weight,
    bias,
    out,
    y_b,
    N: tl.constexpr,
    D: tl.constexpr,
    K: tl.constexpr,
    EPS: tl.constexpr,
    NORM: tl.constexpr,
    BN: tl.constexpr,
    BD: tl.constexpr,
    BK: tl.constexpr,
):
    """One sample, by BK columns. If these are all columns, o stays in registers; else it is computed twice, first for
    its statistics."""
    ONE: tl.constexpr = BK >= K
    sample = tl.program_id(0).to(tl.int64)
    y += sample * y_b
    out += sample * N * K
    token, place = tl.arange(0, BN)[:, None], tl.arange(0, BD)[None, :]
    tokens = tl.load(x + sample * N * D + token * D + place, mask=(token < N) & (place < D), other=0.0)
    pairs = tl.dot(tokens, tokens.T).to(tokens.dtype)

    mean, squares = 0.0, 0.0
    o = tl.zeros((BN, BK // 8, 8), tl.float32)
    if NORM != "none" or ONE:
        for at in range(0, K, BK):
            o = compressed(pairs, y, at, N, K, BN, BK)
            if NORM == "layer":  # merge (count, mean, squares about the mean) of the parts by Chan's formula
                count = N * tl.minimum(K - at, BK)
                of_tile = total(o) / count
                centred = tl.where(columns_of(y, at, N, K, BN, BK)[1], o - of_tile, 0.0)
                step = of_tile - mean
                share = count / (N * at + count).to(tl.float32)
                squares += total(centred * centred) + step * step * share * (N * at)
                mean += step * share
            elif NORM == "rms":
                squares += total(o * o)
    rstd = 1.0 if NORM == "none" else tl.rsqrt(squares * (1.0 / (N * K)) + EPS)
    for at in range(0, K, BK):
        if not ONE:
            o = compressed(pairs, y, at, N, K, BN, BK)
        z = (o - mean) * rstd if NORM == "layer" else o * rstd
        offsets, there = columns_of(y, at, N, K, BN, BK)
        if weight is not None:
            z *= tl.load(weight + offsets, mask=there, other=0.0).to(tl.float32)
        if bias is not None:
            z += tl.load(bias + offsets, mask=there, other=0.0).to(tl.float32)
        tl.store(out + offsets, z.to(out.dtype.element_ty), mask=there)


def launch(
    x: Tensor, y: Tensor, weight: Tensor | None, bias: Tensor | None, out: Tensor, norm: str, eps: float, arch: str
) -> Launch:
    """The launch for contiguous operands that reasons_against takes."""
    (b, n, d), k = x.shape, y.shape[-1]
    bn, bd = (max(16, triton.next_power_of_2(size)) for size in (n, d))
    bk, warps = configuration(bn, bd, max(16, triton.next_power_of_2(k)), arch)
    args = {"x": x, "y": y, "weight": weight, "bias": bias, "out": out, "y_b": n * k if y.dim() == 3 else 0}
    constants = {"N": n, "D": d, "K": k, "EPS": eps, "NORM": norm, "BN": bn, "BD": bd, "BK": bk}
    flops = 2 * b * n * n * (d + k)
    return Launch(fm_kernel, (b,), args, constants, warps, 2, flops, moved(x, y, weight, bias, out))


def configuration(bn: int, bd: int, columns: int, arch: str) -> tuple[int, int]:
    """(BK, warps). With 4 or more warps Blackwell's products lie in tensor memory, which Triton 3.7 cannot reduce to
    one number ("parent layout must have at least rank >= 2")."""
    bk = columns if bn * columns <= 8192 else 4096 // bn
    return bk, max(1, min(2 if arch == "sm_100" else 8, bn * max(bk, bd) // 2048))
