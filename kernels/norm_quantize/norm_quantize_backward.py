"""loka::norm_quantize_backward: the gradient of norm and activation, quantized for the two products that read it.

    out, scale, copy, copy_scale, grad_weight, grad_bias, total = norm_quantize_backward(
        grad, x, statistics, weight, bias, norm, block, activation, dtype, copied, summed, gain)

    y = activation(norm(x) * weight + bias) of loka::norm_quantize; gain * grad is y's gradient
    out * scale ~ x's gradient;  copy * copy_scale ~ its transpose

grad, x: (R, N) in bfloat16, float16 or float32 (float64: the reference, for gradcheck).
statistics: those that loka::norm_quantize or loka::gemm_norm saved for these rows.
weight, bias, norm, block, activation: as in the forward.
gain: the factor by which dropout multiplied kept values, if x is the dropout's result (a ReLU's gradient is 0 where
    that is 0); else 1.

dtype: that of out, (R, N). FP8 has one scale a row, (R, 1), as grad_input's product reads it; a wider dtype has scale
    (0,).
copied: with FP8, also write the transpose (N, R) with one scale for each of its rows, (N, 1), as grad_weight's product
    reads it, which contracts over R; else copy and copy_scale are empty.
grad_weight, grad_bias: (N,) in the dtype of weight and bias, or (0,).
total: with `summed` (N,) in x's dtype, the sum of x's gradient over rows, before it is rounded: the gradient of a bias
    before the norm; else (0,).

Sums over rows are in float32, in two stages, always in the same order, and rounded once. Zero rows, NaN and infinities
as in loka::quantize. A column's scale needs all rows, so the copy takes a second pass over grad and x. At the kinks of
relu and hard swish the slope is torch's.
Raises ValueError for other dtypes and shapes.
Source: fused normalization blog (pytorch.org), LoKA Mods (arXiv 2605.10886).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple

import torch
import triton
from torch import Tensor

from loka_compile import compat
from loka_compile.kernels import norms
from loka_compile.kernels.launch import Launch, Specimen, arch_of, moved
from loka_compile.kernels.norm_quantize.norm_quantize_backward_kernel import gradient_kernel, sums_kernel
from loka_compile.kernels.norm_quantize.norm_quantize_tiles import PARTS, lanes_of, tile
from loka_compile.kernels.op import Op, T, contiguous, declare, dense
from loka_compile.kernels.quantize.quantize import AMAX_FLOOR

# ---------------------------------------------------------------- the declaration, the specification


class Gradients(NamedTuple, Generic[T]):
    out: T
    scale: T
    copy: T
    copy_scale: T
    grad_weight: T
    grad_bias: T
    total: T


@dataclass(frozen=True)
class NormQuantizeBackward(Op[T, Gradients[T]]):
    """See the module's docstring."""

    name: ClassVar[str] = "norm_quantize_backward"
    values: ClassVar[Any] = Gradients
    grad: T
    x: T
    statistics: T
    weight: T | None
    bias: T | None
    norm: str
    block: int
    activation: str
    dtype: torch.dtype
    copied: bool
    summed: bool
    gain: float

    @property
    def of_relu(self) -> bool:
        """Whether this is the gradient of a ReLU alone."""
        return (self.norm, self.activation, self.weight, self.bias) == ("none", "relu", None, None)


def reference(call: NormQuantizeBackward[Tensor]) -> Gradients[Tensor]:
    """The specification; see the module's docstring."""
    check(call)
    x, weight, bias, norm, statistics = call.x, call.weight, call.bias, call.norm, call.statistics
    g, n = (each.to(torch.promote_types(x.dtype, torch.float32)) for each in (call.grad, x))
    g = g if call.gain == 1.0 else g * call.gain
    length = call.block or x.shape[1]
    blocks = x.shape[1] // length
    rstd = statistics[:, -blocks:, None] if norm != "none" else None
    if rstd is not None:
        n = n.unflatten(1, (blocks, length))
        n = ((n - statistics[:, :blocks, None] if norm == "layer" else n) * rstd).flatten(1)
    g = norms.through(g, norms.affine(n, weight, bias), call.activation)
    grad_weight = x.new_empty(0) if weight is None else (g * n).sum(0).to(weight.dtype)
    grad_bias = x.new_empty(0) if bias is None else g.sum(0).to(bias.dtype)
    g = norms.affine(g, weight, None)
    if rstd is not None:
        g, n = (each.unflatten(1, (blocks, length)) for each in (g, n))
        mean = g.mean(2, keepdim=True) if norm == "layer" else 0.0
        g = ((g - mean - n * (g * n).mean(2, keepdim=True)) * rstd).flatten(1)
    total = g.sum(0).to(x.dtype) if call.summed else x.new_empty(0)
    out, scale = norms.quantize_rows(g, None, call.dtype)
    copy, copy_scale = quantize_columns(g, call.dtype) if call.copied else (out.new_empty(0), scale.new_empty(0))
    return Gradients(out, scale, copy, copy_scale, grad_weight, grad_bias, total)


def quantize_columns(y: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The transpose (N, R) of y (R, N) in FP8, with one scale for each of its rows, (N, 1)."""
    if compat.guard_free(y.shape[0] == 0):  # amax of an empty tensor is an error
        return y.new_empty((y.shape[1], 0), dtype=dtype), y.new_ones((y.shape[1], 1), dtype=torch.float32)
    copy, scale = norms.quantize_rows(y.t(), None, dtype)
    return copy.contiguous(), scale


def check(call: NormQuantizeBackward[Tensor]) -> None:
    op, grad, x, dtype, copied = f"loka::{call.name}", call.grad, call.x, call.dtype, call.copied
    if x.dim() != 2 or x.shape[1] == 0 or grad.shape != x.shape:
        raise ValueError(f"{op}: grad and x must be (R, N), got {tuple(grad.shape)} and {tuple(x.shape)}")
    if x.dtype not in (*norms.FLOATS, torch.float64) or not grad.is_floating_point():
        raise ValueError(f"{op}: grad and x must be floats, got {grad.dtype} and {x.dtype}")
    norms.check_norm(op, x.shape[1], call.weight, call.bias, call.norm, call.block, call.activation)
    saved = norms.statistics_shape(x, call.norm, call.block)
    if call.statistics.shape != saved and call.norm != "none":
        raise ValueError(
            f"{op}: statistics must be {saved}, as saved by the forward; got {tuple(call.statistics.shape)}"
        )
    if dtype not in (*norms.FP8, *norms.FLOATS, torch.float64) or (copied and dtype not in norms.FP8):
        wanted = "FP8 with a copy" if copied else "FP8 or a wider float"
        raise ValueError(f"{op}: out must be {wanted}, got {dtype}")


# ---------------------------------------------------------------- its launches


def launches(call: NormQuantizeBackward[Tensor], outputs: Gradients[Tensor], arch: str) -> list[Launch]:
    """The gradient; a second stage for sums over rows, if there are any; the transposed copy, if it is wanted. All
    tensors are contiguous."""
    out, scale, copy, copy_scale, grad_weight, grad_bias, total = outputs
    grad, x, statistics, weight, bias, norm = call.grad, call.x, call.statistics, call.weight, call.bias, call.norm
    rows, n = x.shape
    length = call.block or n
    bb, bl = triton.next_power_of_2(n // length), triton.next_power_of_2(length)
    lanes = lanes_of(arch)
    scaled = out.dtype in norms.FP8

    def gradient(
        target: Tensor, programs: int, bm: int, warps: int, amax: Tensor | None, **more: Tensor | None
    ) -> Launch:
        args = {
            "grad": grad,
            "x": x,
            "statistics": statistics if norm != "none" else None,
            "weight": weight,
            "bias": bias,
            "columns_amax": amax,
            "out": target,
            "scale": None,
            "weight_sums": None,
            "bias_sums": None,
            "totals": None,
            "amaxes": None,
            **more,
            "rows": rows,
        }
        constants = {
            "N": n,
            "BLOCKS": n // length,
            "NORM": norm,
            "ACTIVATION": call.activation,
            "GAIN": call.gain,
            "TOP": norms.largest(out.dtype) if scaled else 0.0,
            "FLOOR": AMAX_FLOOR,
            "COPY": amax is not None,
            "ONCE": programs == triton.cdiv(rows, bm),
            "BM": bm,
            "BB": bb,
            "BL": bl,
        }
        nbytes = moved(grad, x, statistics, weight, bias, amax, target, *more.values())
        return Launch(gradient_kernel, (programs,), args, constants, warps, 1, 0, nbytes)

    results = {"weight_sums": grad_weight, "bias_sums": grad_bias, "totals": total, "amaxes": copy}
    summing = any(each.numel() for each in results.values())
    each = (16, 8) if summing else (32 if scaled else 16, 4)  # sums need registers
    bm, warps = tile(rows, bb * bl, arch, *each)
    programs = triton.cdiv(rows, bm)
    parts = min(programs, PARTS) if summing else programs
    sums = {name: scale.new_empty((parts, n)) if each.numel() else None for name, each in results.items()}
    made = [gradient(out, parts, bm, warps, None, scale=scale if scaled else None, **sums)]
    if not summing:
        return made
    columns_amax = scale.new_empty(n) if copy.numel() else None
    summed = {"grad_weight": grad_weight, "grad_bias": grad_bias, "total": total, "columns_amax": columns_amax}
    args = {**sums, **summed, "copy_scale": copy_scale, "parts": parts}
    constants = {"N": n, "TOP": norms.largest(out.dtype) if scaled else 1.0, "FLOOR": AMAX_FLOOR, "BP": 64, "BN": 32}
    nbytes = moved(*sums.values(), *summed.values())
    made.append(Launch(sums_kernel, (triton.cdiv(n, 32),), args, constants, 4, 2, 0, nbytes))
    if not copy.numel():
        return made
    bm, warps = tile(rows, bb * bl, arch, 32, 512 // lanes)  # enough rows to fill whole memory sectors of the copy
    return [*made, gradient(copy, triton.cdiv(rows, bm), bm, warps, columns_amax)]


# ---------------------------------------------------------------- the op


def run(call: NormQuantizeBackward[Tensor]) -> Gradients[Tensor]:
    x = call.x
    if not x.is_cuda or x.dtype == torch.float64 or x.shape[1] > norms.LONGEST_ROW or not x.shape[0]:
        return dense(reference)(call)
    check(call)
    outputs = empty_outputs(call)
    for each in launches(contiguous(call), outputs, arch_of(x)):
        each.run()
    return outputs


norm_quantize_backward = declare(NormQuantizeBackward, dense(reference), run)


def empty_outputs(call: NormQuantizeBackward[Tensor]) -> Gradients[Tensor]:
    """Memory for the kernels' results."""
    x, dtype, copied = call.x, call.dtype, call.copied
    rows, n = x.shape
    out = x.new_empty((rows, n), dtype=dtype)
    scale = x.new_empty((rows, 1) if dtype in norms.FP8 else (0,), dtype=torch.float32)
    copy = x.new_empty((n, rows) if copied else (0,), dtype=dtype)
    copy_scale = x.new_empty((n, 1) if copied else (0,), dtype=torch.float32)
    summed = call.weight, call.bias, x if call.summed else None
    sums = (x.new_empty(0) if each is None else each.new_empty(n) for each in summed)
    return Gradients(out, scale, copy, copy_scale, *sums)


def specimens(arch: str) -> list[Specimen]:
    """Every launch of the op at the field's shapes."""
    fp8 = torch.float8_e4m3fnuz if arch == "gfx942" else torch.float8_e4m3fn

    def of(
        norm: str,
        activation: str,
        rows: int,
        n: int,
        block: int = 0,
        weights: int = 0,
        dtype: torch.dtype = fp8,
        summed: bool = False,
    ) -> list[Specimen]:
        x = torch.empty(rows, n, dtype=torch.bfloat16, device="meta")
        weight, bias = (x.new_empty(n) if weights > i else None for i in (0, 1))
        statistics = x.new_empty(norms.statistics_shape(x, norm, block), dtype=torch.float32)
        named = norm, block, activation, dtype, dtype == fp8, summed, 1.0
        call = NormQuantizeBackward(torch.empty_like(x), x, statistics, weight, bias, *named)
        made = launches(call, empty_outputs(call), arch)
        words = [norm + (f"/{block}" if block else ""), *["affine"] * (weights > 0), activation, *["summed"] * summed]
        words = ["norm_quantize_backward", *(w for w in words if w != "none")]
        name = " ".join([*words, str(dtype).removeprefix("torch."), f"{rows}x{n}"])
        needs: tuple[str, ...] = (
            ("wide_loads", "wide_stores") if len(made) == 1 else ("wide_loads",)
        )  # sums are stored beside the rows
        needs = needs if rows > 4096 or len(made) == 1 else ()  # a small tile's vectors and statistics count as much
        listed = zip(made, ("", " sums", " copy"), strict=False)
        return [Specimen(name + what, each, (), needs if not what else ()) for each, what in listed]

    return [
        *of("rms", "relu", 65536, 512),
        *of("rms", "hard_swish", 65536, 512, block=256),
        *of("layer", "relu", 65536, 512, weights=2),
        *of("layer", "gelu", 65536, 512, weights=2),
        *of("rms", "silu", 4096, 1024, weights=1),
        *of("layer", "relu", 65536, 512, weights=2, summed=True),
        *of("layer", "relu", 4096, 512, weights=2, summed=True, dtype=torch.bfloat16),
        *of("none", "relu", 65536, 512, summed=True, dtype=torch.bfloat16),
        *of("layer", "none", 65536, 512, dtype=torch.bfloat16),
        *of("rms", "relu", 65536, 512, dtype=torch.bfloat16),
    ]
