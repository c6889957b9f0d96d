"""The Triton kernel of loka::norm_quantize, and functions that other kernels share: activations, norms, rounding."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

from loka_compile.kernels.ptx import times

if triton.knobs.runtime.interpret:  # the interpreter has no libdevice

    @triton.jit
    def quotient(x, y):
        return x / y

else:

    @triton.jit
    def quotient(x, y):
        """x / y to 2 ulp, in one instruction and a multiplication; 0 for y beyond 2^126."""
        return libdevice.fast_dividef(x, y)


@triton.jit
def gated(x, z):
    """x * sigmoid(z)."""
    return quotient(x, 1.0 + tl.exp2(z * -1.4426950408889634))


@triton.jit
def activated(y, ACTIVATION: tl.constexpr, PAIRS: tl.constexpr = False):
    """The activation in float32; a NaN stays NaN. PAIRS: compute two values an instruction, for y (M, B, N); see
    ptx.py."""
    if ACTIVATION == "relu":
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "silu":
        y = gated(y, y)
    elif ACTIVATION == "hard_swish":
        y = times(
            y, tl.minimum(tl.maximum(tl.fma(y, 1.0 / 6.0, 0.5), 0.0), 1.0), PAIRS
        )  # min and max become one saturating instruction
    elif ACTIVATION == "gelu":
        size = tl.abs(y)
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL) - size * upper_tail(size)
    return y


@triton.jit
def upper_tail(x):
    """P(standard normal > x) for x >= 0, to 1e-7 (Abramowitz and Stegun 7.1.26); half the instructions of erf."""
    t = quotient(1.0, 1.0 + 0.23164189 * x)
    series = 0.5307027145 * t - 0.7265760135
    series = series * t + 0.7107068705
    series = series * t - 0.142248368
    series = series * t + 0.127414796
    return series * t * tl.exp2((x * -0.7213475204444817) * x)  # in this order MI300X keeps it in registers


@triton.jit
def maximum_or_nan(a, b):
    """The larger of two; NaN if one is NaN."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def to_int8(y):
    """y rounded half to even. The trick: adding 1.5 * 2^23 leaves the integer in a float's low bits."""
    return (y + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def store_vector(out, values, first, n, EVEN: tl.constexpr, wanted):
    """Store values of a vector of length n, from `first` on, if `wanted`.

    A thread holds one value of few, so 16-bit values are stored two at a time as 32-bit words. EVEN: n and first are
    even.
    """
    if EVEN and out.dtype.element_ty.primitive_bitwidth == 16:
        half: tl.constexpr = values.shape[0] // 2
        low, high = tl.split(tl.reshape(values.to(out.dtype.element_ty), (half, 2)))
        low = low.to(tl.uint16, bitcast=True).to(tl.uint32)
        high = high.to(tl.uint16, bitcast=True).to(tl.uint32)
        pair = first // 2 + tl.arange(0, half)
        tl.store(out.to(tl.pointer_type(tl.uint32)) + pair, low | (high << 16), mask=(pair < n // 2) & wanted)
    else:
        at = first + tl.arange(0, values.shape[0])
        tl.store(out + at, values, mask=(at < n) & wanted)


@triton.jit
def normed(
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
    BLOCKS: tl.constexpr,
    LENGTH: tl.constexpr,
    EPS: tl.constexpr,
    NORM: tl.constexpr,
    ACTIVATION: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Norm, affine and activation of a tile's rows in float32, (BM, BB, BL); stores the statistics if there is memory
    for them."""
    if NORM == "layer":
        mean = tl.sum(y, 2) * (1.0 / LENGTH)
        y = y - mean[:, :, None]
        if not EVEN:
            y = tl.where(valid[None, :, :], y, 0.0)
    if NORM != "none":
        rstd = tl.rsqrt(tl.sum(y * y, 2) * (1.0 / LENGTH) + EPS)
        y = y * rstd[:, :, None]
        if statistics is not None:
            S: tl.constexpr = 2 * BLOCKS if NORM == "layer" else BLOCKS
            at = statistics + first * S + row[:, None] * S + blocks[None, :]
            there = (row < left)[:, None] & (blocks < BLOCKS)[None, :]
            if NORM == "layer":
                tl.store(at, mean, mask=there)
                at += BLOCKS
            tl.store(at, rstd, mask=there)
    if weight is not None:
        y = y * tl.load(weight + column, mask=valid, other=0.0).to(tl.float32)[None, :, :]
    if bias is not None:
        y = y + tl.load(bias + column, mask=valid, other=0.0).to(tl.float32)[None, :, :]
    return activated(y, ACTIVATION)


@triton.jit
def norm_quantize_kernel(
    x, weight, bias, given, out, scale, statistics, rows,
    N: tl.constexpr, BLOCKS: tl.constexpr, EPS: tl.constexpr, NORM: tl.constexpr, ACTIVATION: tl.constexpr,
    TOP: tl.constexpr, FLOOR: tl.constexpr, EVEN_ROWS: tl.constexpr,
    BM: tl.constexpr, BB: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """BM rows, each as BB blocks of BL values. TOP: the largest value of out's dtype, 0 if out has no scale."""
    LENGTH: tl.constexpr = N // BLOCKS
    EVEN: tl.constexpr = BB == BLOCKS and BL == LENGTH
    first = tl.program_id(0).to(tl.int64) * BM
    row = tl.arange(0, BM)
    blocks, columns = tl.arange(0, BB), tl.arange(0, BL)
    valid = (blocks < BLOCKS)[:, None] & (columns < LENGTH)[None, :]
    column = blocks[:, None] * LENGTH + columns[None, :]  # in its row
    offsets = row[:, None, None] * N + column[None, :, :]
    left = tl.minimum(rows - first, BM).to(tl.int32)
    if EVEN and EVEN_ROWS:
        loaded = tl.load(x + first * N + offsets)
    else:
        mask = (row < left)[:, None, None] & valid[None, :, :]
        loaded = tl.load(x + first * N + offsets, mask=mask, other=0.0)
    y = loaded.to(tl.float32)

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

    if TOP != 0.0:
        if given is not None:
            y = tl.fma(y, 0.0, y) * (1.0 / tl.load(given))  # a value that is not finite becomes NaN
            y = tl.maximum(y, -TOP, propagate_nan=tl.PropagateNan.ALL)
            y = tl.minimum(y, TOP, propagate_nan=tl.PropagateNan.ALL)
        else:
            if not EVEN:
                y = tl.where(valid[None, :, :], y, 0.0)
            if TOP == 127.0:
                amax = tl.reduce(tl.reduce(tl.abs(y), 2, maximum_or_nan), 1, maximum_or_nan)
                amax = maximum_or_nan(amax, FLOOR)
            else:
                if NORM == "none" or weight is not None or bias is not None:
                    y = tl.fma(y, 0.0, y)  # an infinity becomes NaN; after a plain norm there is none
                amax = tl.max(tl.max(tl.abs(y), 2), 1)  # amax skips NaN
                amax = tl.where(amax > FLOOR, amax, FLOOR)
            tl.store(scale + first + row, amax * (1.0 / TOP), mask=row < left)
            y = y * (TOP / amax)[:, None, None]
    result = to_int8(y) if TOP == 127.0 else y.to(out.dtype.element_ty)
    if EVEN and EVEN_ROWS:
        tl.store(out + first * N + offsets, result)
    else:
        tl.store(out + first * N + offsets, result, mask=mask)
