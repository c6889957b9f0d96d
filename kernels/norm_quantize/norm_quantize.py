"""loka::norm_quantize: a row's norm, its activation and its quantization in one pass over memory.

    out, scale, statistics = norm_quantize(x, weight, bias, given, norm, block, activation, dtype, eps, save)

    n = x * rstd                     norm `rms`;  (x - mean) * rstd  `layer`;  x  `none`
    y = activation(n * weight + bias)
    out ~ y / scale

x: (..., N) in bfloat16, float16 or float32 (float64: the reference, for gradcheck).
weight, bias: (N,) or None.
block: the length of a row's blocks, each with statistics of its own, or 0 for the whole row; `rms` with 256 is
    BlockNorm.
activation: `none`, `relu`, `silu` (the swish gate n * sigmoid(n)), `hard_swish`, `gelu` (by erf).

dtype: that of out, (..., N). FP8 and int8 are quantized as in loka::quantize, with scale (..., 1), one a row. With
    `given`, a float32 tensor (1,), y is divided by it and clamped instead; int8 takes no `given`, because it has no
    NaN. A wider dtype has no scale. scale is (0,) if none is made.
statistics: float32 (..., S), what the backward needs, with `save`: rstd of each block; `layer` has the means of all
    blocks first. S = 0 without `save`.

Everything is computed in float32 and rounded once, to `dtype`. Zero rows give zeros. Squares must stay within float32:
for |x| above about 1e18 rstd is 0. A value that is not finite becomes NaN in FP8, in its own place (a norm spreads NaN
over its block); an int8 row with such a value has a scale that is not finite.
Raises ValueError for other names, dtypes and shapes.
Source: LoKA Mods (arXiv 2605.10886), Lattice's SwishRMSNorm (arXiv 2512.09200).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, NamedTuple

import torch
import triton
from torch import Tensor

from loka_compile.kernels.launch import Launch, Specimen, arch_of, moved
from loka_compile.kernels.norm_quantize.norm_quantize_backward import NormQuantizeBackward
from loka_compile.kernels.norm_quantize.norm_quantize_kernel import norm_quantize_kernel
from loka_compile.kernels.norms import (
    FLOATS,
    FP8,
    LONGEST_ROW,
    RowNorm,
    activate,
    affine,
    check_norm,
    largest,
    normalize,
    quantize_rows,
    statistics_shape,
)
from loka_compile.kernels.op import Op, T, declare, dense
from loka_compile.kernels.quantize.quantize import floor_of

# ---------------------------------------------------------------- the declaration, the specification


class Normed(NamedTuple, Generic[T]):
    out: T
    scale: T
    statistics: T


@dataclass(frozen=True)
class NormQuantize(Op[T, Normed[T]]):
    """See the module's docstring."""

    name: ClassVar[str] = "norm_quantize"
    values: ClassVar[Any] = Normed
    x: T
    weight: T | None
    bias: T | None
    given: T | None
    row: RowNorm


def reference(call: NormQuantize[Tensor]) -> Normed[Tensor]:
    """The specification; see the module's docstring."""
    check(call)
    row, wide = call.row, call.x.to(torch.promote_types(call.x.dtype, torch.float32))
    y, statistics = normalize(wide, row.norm, row.block, row.eps)
    y = activate(affine(y, call.weight, call.bias), row.activation)
    out, scale = quantize_rows(y, call.given, row.dtype)
    return Normed(out, scale, statistics if row.save else statistics.new_empty((*statistics.shape[:-1], 0)))


def check(call: NormQuantize[Tensor]) -> None:
    """Raises ValueError if names, shapes or dtypes do not fit together."""
    op, x, given, row, dtype = f"loka::{call.name}", call.x, call.given, call.row, call.row.dtype
    if x.dim() < 1 or x.shape[-1] == 0 or x.dtype not in (*FLOATS, torch.float64):
        raise ValueError(f"{op}: x must be rows of floats, got {x.dtype} of shape {tuple(x.shape)}")
    check_norm(op, x.shape[-1], call.weight, call.bias, row.norm, row.block, row.activation)
    if dtype not in (*FLOATS, *FP8, torch.int8, torch.float64):
        raise ValueError(f"{op}: out must be FP8, int8 or a wider float, got {dtype}")
    if given is not None and (dtype not in FP8 or given.shape != (1,)):
        raise ValueError(f"{op}: given must have shape (1,) and goes with FP8, got {tuple(given.shape)} with {dtype}")


# ---------------------------------------------------------------- its launches


def launch(call: NormQuantize[Tensor], outputs: Normed[Tensor], arch: str) -> Launch:
    """The launch for contiguous x and out."""
    x, row, out, scale, statistics = call.x, call.row, *outputs
    n = x.shape[-1]
    rows = x.numel() // n
    length = row.block or n
    blocks = n // length
    bb, bl = triton.next_power_of_2(blocks), triton.next_power_of_2(length)
    values = 32 if blocks > 1 else 64  # values of a thread: several rows, so that their loads overlap
    lanes = 64 if arch.startswith("gfx") else 32
    warps = max(4, min(16, bb * bl // (lanes * values)))
    bm = max(1, min(warps * lanes * values // (bb * bl), triton.next_power_of_2(max(rows, 1))))
    args = {
        "x": x,
        "weight": call.weight,
        "bias": call.bias,
        "given": call.given,
        "out": out,
        "scale": scale if scale.numel() else None,
        "statistics": statistics if statistics.numel() else None,
        "rows": rows,
    }
    constants = {
        "N": n,
        "BLOCKS": blocks,
        "EPS": row.eps,
        "NORM": row.norm,
        "ACTIVATION": row.activation,
        "TOP": 0.0 if out.dtype in FLOATS else largest(out.dtype),
        "FLOOR": floor_of(out.dtype),
        "EVEN_ROWS": rows % bm == 0,
        "BM": bm,
        "BB": bb,
        "BL": bl,
    }
    nbytes = moved(x, call.weight, call.bias, *outputs)
    return Launch(norm_quantize_kernel, (triton.cdiv(rows, bm),), args, constants, warps, 1, 0, nbytes)


# ---------------------------------------------------------------- the op


def run(call: NormQuantize[Tensor]) -> Normed[Tensor]:
    x = call.x
    if not x.is_cuda or x.shape[-1] > LONGEST_ROW or x.dtype == torch.float64:
        return dense(reference)(call)
    check(call)
    outputs = empty_outputs(call)
    launch(replace(call, x=x.contiguous()), outputs, arch_of(x)).run()
    return outputs


norm_quantize = declare(NormQuantize, dense(reference), run, gradient="own")


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Sequence[Tensor]) -> None:
    """Keep what the backward reads."""
    call: Any = NormQuantize.bind(*inputs)
    x, row, made = call.x, call.row, Normed(*output)
    alone = (row.norm, row.activation, call.weight, call.bias) == ("none", "relu", None, None)
    if alone and row.dtype == x.dtype:
        x = made.out  # it is above 0 where x is, and the next op has saved it anyway
    ctx.save_for_backward(x, call.weight, call.bias, made.statistics)
    ctx.row = row


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    row = ctx.row
    if row.dtype not in (*FLOATS, torch.float64):
        raise RuntimeError(
            f"loka::{NormQuantize.name}: {row.dtype} has no gradient; quantize after the norm in training"
        )
    x, weight, bias, statistics = ctx.saved_tensors
    rows = x.reshape(-1, x.shape[-1])
    if row.norm != "none" and not statistics.shape[-1]:  # nothing was saved
        statistics = normalize(rows.to(statistics.dtype), row.norm, row.block, row.eps)[1]
    shape = (rows.shape[0], statistics.shape[-1])
    # without a norm they are empty: made here, so that the forward need not write and keep them
    statistics = statistics.new_empty(shape) if row.norm == "none" else statistics.reshape(shape)
    made = NormQuantizeBackward(
        grad=grad.reshape(rows.shape),
        x=rows,
        statistics=statistics,
        weight=weight,
        bias=bias,
        norm=row.norm,
        block=row.block,
        activation=row.activation,
        dtype=x.dtype,
        copied=False,
        summed=False,
        gain=1.0,
    )()
    grad_weight = None if weight is None else made.grad_weight
    grad_bias = None if bias is None else made.grad_bias
    return made.out.reshape(x.shape), grad_weight, grad_bias, *[None] * 7


torch.library.register_autograd("loka::norm_quantize", _backward, setup_context=_keep)


def empty_outputs(call: NormQuantize[Tensor]) -> Normed[Tensor]:
    """Memory for the kernel's results."""
    x, row = call.x, call.row
    scaled = call.given is None and row.dtype in (*FP8, torch.int8)
    scale = x.new_empty((*x.shape[:-1], 1) if scaled else (0,), dtype=torch.float32)
    saved = statistics_shape(x, row.norm if row.save else "none", row.block)
    statistics = x.new_empty(saved, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    return Normed(x.new_empty(x.shape, dtype=row.dtype), scale, statistics)


def specimens(arch: str) -> list[Specimen]:
    """At the field's shapes, against what Inductor runs without fusing the quantization."""
    fp8 = torch.float8_e4m3fnuz if arch == "gfx942" else torch.float8_e4m3fn

    def specimen(
        norm: str, activation: str, rows: int, n: int, block: int = 0, weights: int = 0, **more: torch.dtype
    ) -> Specimen:
        dtype = more.get("dtype", fp8)
        x = torch.empty(rows, n, dtype=torch.bfloat16, device="meta")
        weight, bias = (x.new_empty(n) if weights > i else None for i in (0, 1))
        call = NormQuantize(x, weight, bias, None, RowNorm(norm, block, activation, dtype, 1e-6, False))
        outputs = empty_outputs(call)
        made = launch(call, outputs, arch)
        words = ["norm_quantize", norm + (f"/{block}" if block else ""), *["affine"] * (weights > 0), activation]
        name = " ".join([*(w for w in words if w != "none"), str(dtype).removeprefix("torch."), f"{rows}x{n}"])
        size = moved(x)
        unfused = (("norm, activation", 0, 2 * size), ("quantize", 0, size + moved(*outputs)))
        return Specimen(name, made, unfused if norm != "none" and dtype == fp8 else (), ("wide_loads", "wide_stores"))

    return [
        specimen("none", "none", 65536, 512),
        specimen("layer", "relu", 65536, 512, weights=2),
        specimen("rms", "relu", 65536, 512),
        specimen("rms", "silu", 65536, 512, weights=1),
        specimen("rms", "hard_swish", 65536, 512, block=256),
        specimen("layer", "gelu", 65536, 512, weights=2),
        specimen("rms", "relu", 4096, 512, weights=1),
        specimen("layer", "relu", 262144, 256, weights=2),
        specimen("rms", "silu", 65536, 768, weights=1),
        specimen("rms", "hard_swish", 16384, 1024, block=256),
        specimen("rms", "relu", 4096, 4096, weights=1),
        specimen("rms", "relu", 65536, 512, weights=1, dtype=torch.bfloat16),
        specimen("rms", "relu", 65536, 512, weights=1, dtype=torch.int8),
    ]
