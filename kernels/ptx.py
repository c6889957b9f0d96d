"""Instructions that Triton does not emit itself: two float32 operations in one, a tanh, a conversion to FP8 that clips
at 0.

The trick: from PACKED on (sm_100) one instruction computes two float32 values that lie in neighbouring registers, which
are neighbours along the last dimension. The other operand comes as *pairs*: int64 tensors of half as many columns. Each
result has the same bits as a single operation, except where a compiler would have contracted a product and a sum.

A kernel gets the chip's PTX level as a constant. It is 0 on AMD and in the interpreter, which runs no assembly.
Source: PTX ISA 8.7: `mul`, `add` and `fma` with `.f32x2` (sm_100); `cvt` with `.relu` (sm_89); `tanh.approx` (sm_75).
"""

from __future__ import annotations

import triton
import triton.language as tl

PACKED = tl.constexpr(100)
CLIPS = tl.constexpr(89)
"""The level from which to_fp8_above_zero exists."""


def level(arch: str) -> int:
    """The PTX level of a chip: 90 for "sm_90"; 0 on AMD and in the interpreter."""
    return int(arch.removeprefix("sm_")) if arch.startswith("sm_") and not triton.knobs.runtime.interpret else 0


@triton.jit
def pair(low, high):
    """Two float32 tensors packed into one int64 tensor."""
    return tl.inline_asm_elementwise(
        "mov.b64 $0, {$1, $2};", "=l,f,f", [low, high], dtype=tl.int64, is_pure=True, pack=1
    )


@triton.jit
def halves(x):
    """(even columns, odd columns) of (M, B, N). It costs nothing: a thread holds both."""
    return tl.split(tl.reshape(x, (x.shape[0], x.shape[1], x.shape[2] // 2, 2)))


ROWS = "{ .reg .b64 x, y; mov.b64 x, {$2, $3}; mov.b64 y, {$4, $5}; %s mov.b64 {$0, $1}, x; }"
TIMES, PLUS = (tl.constexpr(ROWS % f"{each}.rn.f32x2 x, x, y;") for each in ("mul", "add"))
TIMES_PLUS = tl.constexpr(
    "{ .reg .b64 x, y, z; mov.b64 x, {$2, $3}; mov.b64 y, {$4, $5}; mov.b64 z, {$6, $7};"
    " fma.rn.f32x2 x, x, y, z; mov.b64 {$0, $1}, x; }"
)


@triton.jit
def by_twos(x, y, CODE: tl.constexpr):
    """x and y combined by CODE, two values an instruction."""
    return tl.inline_asm_elementwise(CODE, "=f,=f,f,f,f,f", [x, y], dtype=tl.float32, is_pure=True, pack=2)


@triton.jit
def times(x, y, PAIRS: tl.constexpr):
    """x * y in float32. x: (M, B, N); y broadcasts to it. PAIRS: compute two values an instruction."""
    if PAIRS:
        out = by_twos(x, y, TIMES)
    else:
        out = x * y
    return out


@triton.jit
def plus(x, y, PAIRS: tl.constexpr):
    """x + y, as `times`."""
    if PAIRS:
        out = by_twos(x, y, PLUS)
    else:
        out = x + y
    return out


@triton.jit
def times_plus(x, y, z, PAIRS: tl.constexpr):
    """x * y + z, as `times`."""
    if PAIRS:
        out = tl.inline_asm_elementwise(
            TIMES_PLUS, "=f,=f,f,f,f,f,f,f", [x, y, z], dtype=tl.float32, is_pure=True, pack=2
        )
    else:
        out = x * y + z
    return out


COLUMNS = "{ .reg .b64 x; mov.b64 x, {$2, $3}; %s mov.b64 {$0, $1}, x; }"
TIMES_COLUMNS, PLUS_COLUMNS = (tl.constexpr(COLUMNS % f"{each}.rn.f32x2 x, x, $4;") for each in ("mul", "add"))
TIMES_PLUS_COLUMNS = tl.constexpr(COLUMNS % "fma.rn.f32x2 x, x, $4, $5;")


@triton.jit
def by_columns(x, y, z, CODE: tl.constexpr):
    """x (M, B, N) combined by CODE with vectors over the columns, given as pairs; z may be None."""
    low, high = halves(x)
    if z is None:
        low, high = tl.inline_asm_elementwise(
            CODE, "=f,=f,f,f,l", [low, high, y], dtype=(tl.float32, tl.float32), is_pure=True, pack=1
        )
    else:
        low, high = tl.inline_asm_elementwise(
            CODE, "=f,=f,f,f,l,l", [low, high, y, z], dtype=(tl.float32, tl.float32), is_pure=True, pack=1
        )
    return tl.reshape(tl.join(low, high), x.shape)


@triton.jit
def times_columns(x, y, PAIRS: tl.constexpr):
    """x (M, B, N) * y, y over the columns: (1, B, N), or pairs of them if PAIRS."""
    if PAIRS:
        out = by_columns(x, y, None, TIMES_COLUMNS)
    else:
        out = x * y
    return out


@triton.jit
def plus_columns(x, y, PAIRS: tl.constexpr):
    """x + y, as `times_columns`."""
    if PAIRS:
        out = by_columns(x, y, None, PLUS_COLUMNS)
    else:
        out = x + y
    return out


@triton.jit
def times_plus_columns(x, y, z, PAIRS: tl.constexpr):
    """x * y + z, as `times_columns`."""
    if PAIRS:
        out = by_columns(x, y, z, TIMES_PLUS_COLUMNS)
    else:
        out = x * y + z
    return out


@triton.jit
def swish_of_twice(h, PTX: tl.constexpr, PAIRS: tl.constexpr):
    """2 h * sigmoid(2 h) = h + h * tanh(h), for results that are rounded to FP8.

    tanh.approx is exact to 2^-11 of its value, so the result is exact to |h| 2^-11. For h > -2.7 that is less than half
    a step of e4m3, 2^-4 of the value. At level 0 the tanh is written out, for tests only.
    """
    if PTX == 0:
        t = 1.0 - 2.0 / (1.0 + tl.exp2(h * 2.8853900817779268))
    else:
        t = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [h], dtype=tl.float32, is_pure=True, pack=1)
    return times_plus(h, t, h, PAIRS)


CLIP = (
    "{ .reg .b16 low, high; cvt.rn.satfinite.relu.%sx2.f32 low, $2, $1; cvt.rn.satfinite.relu.%sx2.f32 high, $4, $3;"
    " mov.b32 $0, {low, high}; }"
)
TO_E4M3, TO_E5M2 = (tl.constexpr(CLIP % (each, each)) for each in ("e4m3", "e5m2"))


@triton.jit
def to_fp8_above_zero(y, E5M2: tl.constexpr):
    """y of float32 to FP8: 0 where it is negative, NaN where it is NaN."""
    if E5M2:
        out = tl.inline_asm_elementwise(TO_E5M2, "=r,f,f,f,f", [y], dtype=tl.float8e5, is_pure=True, pack=4)
    else:
        out = tl.inline_asm_elementwise(TO_E4M3, "=r,f,f,f,f", [y], dtype=tl.float8e4nv, is_pure=True, pack=4)
    return out
