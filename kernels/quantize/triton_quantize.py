"""loka::triton_quantize: loka::quantize in Triton, along both axes of a matrix at once where a backward needs it.

    q, scale, t, t_scale = triton_quantize(x, dtype, scaling, both)

x: (..., R, C) in bfloat16, float16 or float32. q, scale: those of loka::quantize(x, dtype, scaling, -1), with scaling
`tensor`, `row`, `block` (1 x 128) or `tile` (128 x 128), dtype float8 or, scaled by row, int8. With `both`, t and
t_scale are those of loka::quantize(x, dtype, scaling, -2), and t lies with its columns contiguous, as a product over R
reads it. Of `tensor` and `tile` t holds q's values by the same scale, and t_scale is empty, (0,). Without `both` t and
t_scale are empty, (0,).

x is read once for `block`, `tile` and, along one axis, `row`; `tensor` and `row` along both know no scale before they
have seen all of it and read it twice. Zeros, NaN and infinities as loka::quantize has them. Equal operands give equal
bits. Raises ValueError on other dtypes, scalings and shapes. Source: LoKA recipes (papers.md 1.4); DeepSeek's blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from loka_compile.kernels import norms
from loka_compile.kernels.launch import Launch, Specimen, arch_of, moved
from loka_compile.kernels.norm_quantize import norm_quantize
from loka_compile.kernels.norm_quantize.norm_quantize_kernel import to_int8
from loka_compile.kernels.norms import FLOATS, FP8, RowNorm, largest
from loka_compile.kernels.op import Op, T, declare
from loka_compile.kernels.quantize import quantize as quantization
from loka_compile.kernels.quantize.quantize import BLOCK, floor_of

PARTS = 1024
"""Largest magnitudes of a tensor that its first kernel leaves for the second to compare."""


# ---------------------------------------------------------------- the declaration, the specification


class QuantizedBoth(NamedTuple, Generic[T]):
    q: T
    scale: T
    t: T
    t_scale: T


@dataclass(frozen=True)
class TritonQuantize(Op[T, QuantizedBoth[T]]):
    """See the module's docstring."""

    name: ClassVar[str] = "triton_quantize"
    values: ClassVar[Any] = QuantizedBoth
    x: T
    dtype: torch.dtype
    scaling: str
    both: bool


def reference(x: Tensor, dtype: torch.dtype, scaling: str, both: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The specification; see the module's docstring."""
    check(x, dtype, scaling)
    q, scale = quantization.reference(x, dtype, scaling, -1)
    if not both:
        return q.contiguous(), scale.contiguous(), q.new_empty(0), scale.new_empty(0)
    if scaling in ("tensor", "tile"):
        return q.contiguous(), scale.contiguous(), q.mT.contiguous().mT.clone(), scale.new_empty(0)
    t, t_scale = quantization.reference(x, dtype, scaling, -2)
    return q.contiguous(), scale.contiguous(), t.mT.contiguous().mT, t_scale.contiguous()


def check(x: Tensor, dtype: torch.dtype, scaling: str) -> None:
    op = "loka::triton_quantize"
    if x.dim() < 2 or x.dtype not in FLOATS:
        raise ValueError(f"{op}: x must be matrices of floats, got {x.dtype} of shape {tuple(x.shape)}")
    if scaling not in ("tensor", "row", "block", "tile"):
        raise ValueError(f"{op}: scaling must be tensor, row, block or tile, got {scaling!r}")
    if dtype not in FP8 and (dtype, scaling) != (torch.int8, "row"):
        raise ValueError(f"{op}: dtype must be float8, or int8 scaled by row, got {dtype} by {scaling}")


# ---------------------------------------------------------------- the Triton kernels


@triton.jit
def tile_of(x, R, C: tl.constexpr, TOP: tl.constexpr, EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """(values in float32, of FP8 with NaN for what is not finite; matrix, first row and column)"""
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
    x, parts, rows, columns, R, C: tl.constexpr, TOP: tl.constexpr, EVEN: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Largest magnitudes as the bits of float32, which order as integers do, a NaN above all: of the tensor in PARTS
    parts, or of each row and each column."""
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
    """(scale, what values are multiplied by). A NaN stays one."""
    amax = tl.where(amax < FLOOR, FLOOR, amax)
    return amax * (1.0 / TOP), TOP / amax


@triton.jit
def rounded(y, like, TOP: tl.constexpr):
    return to_int8(y) if TOP == 127.0 else y.to(like.dtype.element_ty)


@triton.jit
def quantize_kernel(
    x, parts, rows, columns, q, scale, t, t_scale, R, C: tl.constexpr, SCALING: tl.constexpr, TOP: tl.constexpr,
    FLOOR: tl.constexpr, PARTS: tl.constexpr, EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """A tile of BM x BN; blocks and tiles are 128 long. parts, rows, columns: amax_kernel's."""
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


# ---------------------------------------------------------------- its launches


def launches(
    x: Tensor, q: Tensor, scale: Tensor, t: Tensor, t_scale: Tensor, scaling: str, both: bool, arch: str
) -> list[Launch]:
    """x contiguous; the rest as the op returns it."""
    if scaling == "row" and not both and x.shape[-1] <= norms.LONGEST_ROW:
        row = RowNorm("none", 0, "none", dtype=q.dtype, eps=0.0, save=False)
        plain = norm_quantize.NormQuantize(x, None, None, None, row)
        return [norm_quantize.launch(plain, norm_quantize.Normed(q, scale, scale.new_empty(0)), arch)]
    r, c = x.shape[-2:]
    batch = x.numel() // (r * c)
    bm, bn, warps = (
        (128, 128, 8 if arch.startswith("gfx") else 4) if scaling in ("tile", "block") or both else (32, 128, 4)
    )
    grid = triton.cdiv(r, bm) * triton.cdiv(c, bn), batch
    even, top = r % bm == 0 and c % bn == 0, largest(q.dtype)
    seen = {"parts": None, "rows": None, "columns": None}
    if scaling == "tensor":
        seen["parts"] = torch.zeros(PARTS, dtype=torch.int32, device=x.device)
    elif scaling == "row":
        bits = torch.zeros(batch * (c + r), dtype=torch.int32, device=x.device)  # cleared by one launch
        seen |= {"rows": bits[batch * c :].view(batch, r), "columns": bits[: batch * c].view(batch, c)}
    shared = {"C": c, "TOP": top, "PARTS": PARTS, "EVEN": even, "BM": bm, "BN": bn}
    made = []
    if scaling in ("tensor", "row"):
        found = moved(*seen.values())
        made.append(Launch(amax_kernel, grid, {"x": x, **seen, "R": r}, shared, warps, 1, 0, moved(x) + found))
    given_t = t.mT if both else None
    args = {
        "x": x,
        **seen,
        "q": q,
        "scale": scale,
        "t": given_t,
        "t_scale": t_scale if t_scale.numel() else None,
        "R": r,
    }
    constants = {**shared, "SCALING": scaling, "FLOOR": floor_of(q.dtype)}
    nbytes = moved(x, *seen.values(), q, scale, given_t, t_scale)
    return [*made, Launch(quantize_kernel, grid, args, constants, warps, 1, 0, nbytes)]


# ---------------------------------------------------------------- the op


def run(call: TritonQuantize[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, dtype, scaling, both = call.args
    if not x.is_cuda or not x.numel():
        return reference(x, dtype, scaling, both)
    check(x, dtype, scaling)
    outputs = empty_outputs(x, dtype, scaling, both)
    for each in launches(x.contiguous(), *outputs, scaling, both, arch_of(x)):
        each.run()
    return outputs


triton_quantize = declare(TritonQuantize, lambda call: reference(*call.args), run)


def empty_outputs(x: Tensor, dtype: torch.dtype, scaling: str, both: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(q, scale, t, t_scale)"""
    *batch, r, c = x.shape
    r_blocks, c_blocks = -(-r // BLOCK), -(-c // BLOCK)
    shapes = {"row": ((r, 1), (1, c)), "block": ((r, c_blocks), (r_blocks, c)), "tile": ((r_blocks, c_blocks), None)}
    along, across = shapes.get(scaling, (None, None))

    def scales(shape: tuple[int, int] | None, otherwise: tuple[int]) -> Tensor:
        return x.new_empty(otherwise if shape is None else (*batch, *shape), dtype=torch.float32)

    t = x.new_empty((*batch, c, r), dtype=dtype).mT if both else x.new_empty(0, dtype=dtype)
    q = x.new_empty(x.shape, dtype=dtype)
    return q, scales(along, (1,)), t, scales(across if both else None, (0,))


def specimens(arch: str) -> list[Specimen]:
    """At the field's shapes. What is read twice has two kernels."""
    fp8 = torch.float8_e4m3fnuz if arch == "gfx942" else torch.float8_e4m3fn

    def listed(scaling: str, rows: int, columns: int, both: bool = False, dtype: torch.dtype = fp8) -> list[Specimen]:
        x = torch.empty(rows, columns, dtype=torch.bfloat16, device="meta")
        made = launches(x, *empty_outputs(x, dtype, scaling, both), scaling, both, arch)
        words = " ".join(["triton_quantize", scaling, *["both"] * both, str(dtype).removeprefix("torch.")])
        size = f"{rows}x{columns}"
        first = [Specimen(f"{words} amax {size}", each, (), ("wide_loads",)) for each in made[:-1]]
        return [*first, Specimen(f"{words} {size}", made[-1], (), ("wide_loads", "wide_stores"))]

    return [
        *listed("tile", 65536, 512),
        *listed("tile", 65536, 512, both=True),
        *listed("tile", 512, 512, both=True),
        *listed("block", 65536, 512),
        *listed("block", 65536, 512, both=True),
        *listed("tensor", 65536, 512),
        *listed("tensor", 65536, 512, both=True),
        *listed("row", 65536, 512, both=True),
        *listed("row", 65536, 512, both=True, dtype=torch.int8),
    ]
