"""loka::triton_quantize: loka::quantize in Triton, along both axes of a matrix at once if a backward needs both.

    q, scale, t, t_scale = triton_quantize(x, dtype, scaling, both)

x: (..., R, C) in bfloat16, float16 or float32.
dtype: float8; int8 only with scaling `row`.
scaling: `tensor`, `row`, `block` (1 x 128) or `tile` (128 x 128).
q, scale: those of loka::quantize(x, dtype, scaling, -1).

With `both`, t and t_scale are those of loka::quantize(x, dtype, scaling, -2); t's columns are contiguous, as a product
over R reads it. For `tensor` and `tile` t holds q's values with q's scale, and t_scale is (0,). Without `both` t and
t_scale are (0,).

x is read once for `block`, `tile` and, along one axis, `row`. `tensor`, and `row` along both axes, know no scale before
all of x was seen, and read it twice. Zeros, NaN and infinities as in loka::quantize. Equal operands give equal bits.
Raises ValueError for other dtypes, scalings and shapes.
Source: LoKA recipes (arXiv 2605.10886); DeepSeek's blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple

import torch
import triton
from torch import Tensor

from loka_compile.kernels import norms
from loka_compile.kernels.launch import Launch, Specimen, arch_of, moved
from loka_compile.kernels.norm_quantize import norm_quantize
from loka_compile.kernels.norms import FLOATS, FP8, RowNorm, largest
from loka_compile.kernels.op import Op, T, declare
from loka_compile.kernels.quantize import quantize as quantization
from loka_compile.kernels.quantize.quantize import BLOCK, floor_of
from loka_compile.kernels.quantize.triton_quantize_kernel import amax_kernel, quantize_kernel

PARTS = 1024
"""Partial maxima of a tensor that the first kernel leaves for the second."""


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


# ---------------------------------------------------------------- its launches


def launches(
    x: Tensor, q: Tensor, scale: Tensor, t: Tensor, t_scale: Tensor, scaling: str, both: bool, arch: str
) -> list[Launch]:
    """The launches; x is contiguous, the other tensors are as the op returns them."""
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
        bits = torch.zeros(batch * (c + r), dtype=torch.int32, device=x.device)  # one launch clears both
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
    """Memory for (q, scale, t, t_scale)."""
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
    """At the field's shapes. Scalings that read x twice have two kernels."""
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
