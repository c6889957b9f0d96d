"""loka::norm_quantize_backward: the gradient of norm and activation, quantized for the two products that take it.

    out, scale, copy, copy_scale, grad_weight, grad_bias, total = norm_quantize_backward(
        grad, x, statistics, weight, bias, norm, block, activation, dtype, copied, summed, gain)

    y = activation(norm(x) * weight + bias) of loka::norm_quantize; gain * grad is y's gradient
    out * scale ~ x's gradient;  copy * copy_scale ~ its transpose

grad, x: (R, N) in bfloat16, float16 or float32 (float64: the reference, for gradcheck). statistics: what
loka::norm_quantize or loka::gemm_norm saved of these rows. weight, bias, norm, block, activation: as in the forward.
dtype: of out. FP8 is quantized with one scale a row, (R, 1), as grad_input's product takes it; a wider one is not
scaled, and scale is empty. copied, for FP8: also the transpose, (N, R), with one scale for each of its rows, (N, 1), as
grad_weight's takes it (its contraction is over R); else both are empty. grad_weight, grad_bias: (N,) in the dtype of
weight and bias, empty where there is none. total, with `summed`: (N,) in the dtype of x, x's gradient summed over rows
before it is rounded, which is that of a bias before the norm; else empty. gain: 1, or what dropout multiplied what it
let pass by, where x is its result: a ReLU's gradient is 0 where that is. Sums over rows are of float32, in two stages,
always in the same order, rounded once.

Zero rows, NaN and infinities as in loka::quantize. A column's scale needs all rows, so the copy is a second pass over
grad and x. Where relu's argument is 0, and hard swish's 3 from 0, the slope is torch's.
Raises ValueError on other dtypes and shapes. Source: fused normalization blog (papers.md 1.6), LoKA Mods (1.3).
"""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from loka_compile import compat
from loka_compile.kernels import norm_quantize as norms
from loka_compile.kernels.launch import Launch, Specimen, arch_of, moved
from loka_compile.kernels.norm_quantize_backward_kernel import gradient_kernel, sums_kernel
from loka_compile.kernels.quantize import AMAX_FLOOR

PARTS = 256
"""Programs that sums over rows are of at most: each leaves a part for the second stage, and about two fit an SM."""
Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


# ---------------------------------------------------------------- the specification


def reference(
    grad: Tensor, x: Tensor, statistics: Tensor, weight: Tensor | None, bias: Tensor | None, norm: str, block: int,
    activation: str, dtype: torch.dtype, copied: bool, summed: bool, gain: float,
) -> Outputs:  # fmt: skip
    """The specification; see the module's docstring."""
    check(grad, x, statistics, weight, bias, norm, block, activation, dtype, copied)
    g, n = (each.to(torch.promote_types(x.dtype, torch.float32)) for each in (grad, x))
    g = g if gain == 1.0 else g * gain
    length = block or x.shape[1]
    blocks = x.shape[1] // length
    rstd = statistics[:, -blocks:, None] if norm != "none" else None
    if rstd is not None:
        n = n.unflatten(1, (blocks, length))
        n = ((n - statistics[:, :blocks, None] if norm == "layer" else n) * rstd).flatten(1)
    g = g * slope(norms.affine(n, weight, bias), activation)
    grad_weight = x.new_empty(0) if weight is None else (g * n).sum(0).to(weight.dtype)
    grad_bias = x.new_empty(0) if bias is None else g.sum(0).to(bias.dtype)
    g = norms.affine(g, weight, None)
    if rstd is not None:
        g, n = (each.unflatten(1, (blocks, length)) for each in (g, n))
        mean = g.mean(2, keepdim=True) if norm == "layer" else 0.0
        g = ((g - mean - n * (g * n).mean(2, keepdim=True)) * rstd).flatten(1)
    total = g.sum(0).to(x.dtype) if summed else x.new_empty(0)
    out, scale = norms.quantize_rows(g, None, dtype)
    copy, copy_scale = quantize_columns(g, dtype) if copied else (out.new_empty(0), scale.new_empty(0))
    return out, scale, copy, copy_scale, grad_weight, grad_bias, total


def quantize_columns(y: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The transpose of (R, N) in FP8, (N, R), with one scale for each of its rows, (N, 1)."""
    if compat.guard_free(y.shape[0] == 0):  # amax of nothing is an error
        return y.new_empty((y.shape[1], 0), dtype=dtype), y.new_ones((y.shape[1], 1), dtype=torch.float32)
    copy, scale = norms.quantize_rows(y.t(), None, dtype)
    return copy.contiguous(), scale


def slope(z: Tensor, activation: str) -> Tensor:
    """The activation's derivative."""
    if activation == "relu":
        return torch.where(z <= 0, 0.0, torch.ones_like(z))
    if activation == "silu":
        s = torch.sigmoid(z)
        return s * (1 + z * (1 - s))
    if activation == "hard_swish":
        return torch.where(z <= -3, 0.0, torch.where(z < 3, z / 3 + 0.5, 1.0))
    if activation == "gelu":
        density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        return torch.special.erfc(-z / math.sqrt(2)) / 2 + z * density
    return torch.ones_like(z)


def check(
    grad: Tensor, x: Tensor, statistics: Tensor, weight: Tensor | None, bias: Tensor | None, norm: str, block: int,
    activation: str, dtype: torch.dtype, copied: bool,
) -> None:  # fmt: skip
    op = "loka::norm_quantize_backward"
    if x.dim() != 2 or x.shape[1] == 0 or grad.shape != x.shape:
        raise ValueError(f"{op}: grad and x are (R, N), got {tuple(grad.shape)} and {tuple(x.shape)}")
    if x.dtype not in (*norms.FLOATS, torch.float64) or not grad.is_floating_point():
        raise ValueError(f"{op}: grad and x must be floats, got {grad.dtype} and {x.dtype}")
    norms.check_norm(op, x.shape[1], weight, bias, norm, block, activation)
    saved = x.shape[0], {"none": 0, "rms": 1, "layer": 2}[norm] * (x.shape[1] // (block or x.shape[1]))
    if tuple(statistics.shape) != saved and norm != "none":
        raise ValueError(f"{op}: statistics must have shape {saved}, got {tuple(statistics.shape)}: save them")
    if dtype not in (*norms.FP8, *norms.FLOATS, torch.float64) or (copied and dtype not in norms.FP8):
        raise ValueError(f"{op}: out cannot be {dtype}{' with a copy, which is for FP8' if copied else ''}")


# ---------------------------------------------------------------- its launches


def lanes_of(arch: str) -> int:
    return 64 if arch.startswith("gfx") else 32


def tile(rows: int, width: int, arch: str, values: int, least: int) -> tuple[int, int]:
    """(rows, warps) of a program whose threads have this many values of rows of `width`, a power of 2."""
    lanes = lanes_of(arch)
    warps = max(least, min(16, triton.next_power_of_2(triton.cdiv(width, lanes * values))))
    return max(1, min(warps * lanes * values // width, triton.next_power_of_2(max(rows, 1)))), warps


def launches(
    grad: Tensor, x: Tensor, statistics: Tensor, weight: Tensor | None, bias: Tensor | None, outputs: Outputs,
    norm: str, block: int, activation: str, gain: float, arch: str,
) -> list[Launch]:  # fmt: skip
    """The gradient; sums over rows, where there are any; the transposed copy, where it is wanted. All contiguous."""
    out, scale, copy, copy_scale, grad_weight, grad_bias, total = outputs
    rows, n = x.shape
    length = block or n
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
            "ACTIVATION": activation,
            "GAIN": gain,
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
    each = (16, 8) if summing else (32 if scaled else 16, 4)  # sums take registers too
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
    bm, warps = tile(rows, bb * bl, arch, 32, 512 // lanes)  # enough rows to write whole sectors of the copy
    return [*made, gradient(copy, triton.cdiv(rows, bm), bm, warps, columns_amax)]


# ---------------------------------------------------------------- the op


@torch.library.custom_op("loka::norm_quantize_backward", mutates_args=())
def norm_quantize_backward(
    grad: Tensor,
    x: Tensor,
    statistics: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    norm: str,
    block: int,
    activation: str,
    dtype: torch.dtype,
    copied: bool,
    summed: bool,
    gain: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    args = grad, x, statistics, weight, bias, norm, block, activation, dtype, copied, summed, gain
    if not x.is_cuda or x.dtype == torch.float64 or x.shape[1] > norms.LONGEST_ROW or not x.shape[0]:
        return reference(*args)
    check(*args[:10])
    outputs = empty_outputs(x, weight, bias, dtype, copied, summed)
    dense = [each if each is None else each.contiguous() for each in args[:5]]
    for each in launches(*dense, outputs, norm, block, activation, gain, arch_of(x)):
        each.run()
    return outputs


@norm_quantize_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    statistics: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    norm: str,
    block: int,
    activation: str,
    dtype: torch.dtype,
    copied: bool,
    summed: bool,
    gain: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    check(grad, x, statistics, weight, bias, norm, block, activation, dtype, copied)
    return empty_outputs(x, weight, bias, dtype, copied, summed)


def empty_outputs(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype, copied: bool, summed: bool
) -> Outputs:
    """(out, scale, copy, copy_scale, grad_weight, grad_bias, total)"""
    rows, n = x.shape
    out = x.new_empty((rows, n), dtype=dtype)
    scale = x.new_empty((rows, 1) if dtype in norms.FP8 else (0,), dtype=torch.float32)
    copy = x.new_empty((n, rows) if copied else (0,), dtype=dtype)
    copy_scale = x.new_empty((n, 1) if copied else (0,), dtype=torch.float32)
    sums = (x.new_empty(0) if each is None else each.new_empty(n) for each in (weight, bias, x if summed else None))
    return out, scale, copy, copy_scale, *sums


def specimens(arch: str) -> list[Specimen]:
    """At the field's shapes; every launch of the op."""
    fp8 = torch.float8_e4m3fnuz if arch == "gfx942" else torch.float8_e4m3fn

    def of(
        norm: str, activation: str, rows: int, n: int, block: int = 0, weights: int = 0, dtype: torch.dtype = fp8,
        summed: bool = False,
    ) -> list[Specimen]:  # fmt: skip
        x = torch.empty(rows, n, dtype=torch.bfloat16, device="meta")
        weight, bias = (x.new_empty(n) if weights > i else None for i in (0, 1))
        statistics = norms.empty_outputs(x, None, norm, block, dtype, True)[2]
        outputs = empty_outputs(x, weight, bias, dtype, dtype == fp8, summed)
        made = launches(torch.empty_like(x), x, statistics, weight, bias, outputs, norm, block, activation, 1.0, arch)
        words = [
            "norm_quantize_backward",
            norm + (f"/{block}" if block else ""),
            *["affine"] * (weights > 0),
            activation,
            *["summed"] * summed,
        ]
        name = " ".join([*(w for w in words if w != "none"), str(dtype).removeprefix("torch."), f"{rows}x{n}"])
        needs = ("wide_loads", "wide_stores") if len(made) == 1 else ("wide_loads",)  # sums are stored beside the rows
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
