"""loka::norm_quantize: a row's norm, its activation and its quantization in one pass over memory.

    out, scale, statistics = norm_quantize(x, weight, bias, given, norm, block, activation, dtype, eps, save)

    n = x * rstd                     norm `rms`;  (x - mean) * rstd  `layer`;  x  `none`
    y = activation(n * weight + bias)
    out ~ y / scale

x: (..., N) in bfloat16, float16 or float32 (float64: the reference, for gradcheck). weight, bias: (N,) or None.
block: 0, or the length of the blocks of a row, all alike, whose statistics are taken by themselves; `rms` with 256 is
BlockNorm. activation: `none`, `relu`, `silu` (the swish gate n * sigmoid(n)), `hard_swish`, `gelu` (by erf).
dtype: of out. An 8-bit one is quantized as loka::quantize does: with one scale a row, shape (..., 1), or with `given`,
one float32 in a tensor of shape (1,), by which y is divided and then clamped; int8 takes no given scale, as it has no
NaN. A wider dtype is not scaled. scale is empty, shape (0,), where none is made.
statistics: float32, what the backward needs, with `save`: (..., S), rstd of each block (S = blocks), for `layer` mean
and then rstd of each block; else S = 0.

All is computed in float32 and rounded once, to `dtype`. Zero rows give zeros. Squares must stay within float32: beyond
|x| = 1e18 or so rstd is 0. What is not finite becomes NaN in FP8, in its own place (a norm spreads a NaN over its
block); an int8 row that holds such a value has a scale that is not finite.
Raises ValueError on other names, dtypes and shapes. Source: LoKA Mods (papers.md 1.3), Lattice's SwishRMSNorm (3.2.6).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from loka_compile.kernels.launch import Launch, Specimen, moved
from loka_compile.kernels.quantize import AMAX_FLOOR, finite_or_nan, finite_size

NORMS = ("none", "rms", "layer")
ACTIVATIONS = ("none", "relu", "silu", "hard_swish", "gelu")
FLOATS = (torch.bfloat16, torch.float16, torch.float32)
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz)
LONGEST_ROW = 32768
"""Values of a row that the kernel holds in registers; longer ones take the reference."""


# ---------------------------------------------------------------- the specification


def reference(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    given: Tensor | None,
    norm: str,
    block: int,
    activation: str,
    dtype: torch.dtype,
    eps: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The specification; see the module's docstring."""
    check(x, weight, bias, given, norm, block, activation, dtype)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    y, statistics = normalize(wide, norm, block, eps)
    y = activate(affine(y, weight, bias), activation)
    out, scale = quantize_rows(y, given, dtype)
    return out, scale, statistics if save else statistics[..., :0].contiguous()


def normalize(x: Tensor, norm: str, block: int, eps: float) -> tuple[Tensor, Tensor]:
    """(n, statistics)"""
    if norm == "none":
        return x, x.new_empty((*x.shape[:-1], 0))
    blocks = x.unflatten(-1, (-1, block or x.shape[-1]))
    if norm == "rms":
        rstd = torch.rsqrt(blocks.square().mean(-1, keepdim=True) + eps)
        return (blocks * rstd).flatten(-2), rstd.squeeze(-1)
    mean = blocks.mean(-1, keepdim=True)
    centred = blocks - mean
    rstd = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return (centred * rstd).flatten(-2), torch.cat([mean, rstd], -2).squeeze(-1)


def affine(n: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    n = n if weight is None else n * weight.to(n.dtype)
    return n if bias is None else n + bias.to(n.dtype)


def activate(x: Tensor, activation: str) -> Tensor:
    if activation == "silu":
        return x * torch.sigmoid(x)
    functions = {"relu": torch.relu, "hard_swish": torch.nn.functional.hardswish, "gelu": torch.nn.functional.gelu}
    return functions[activation](x) if activation in functions else x


def quantize_rows(y: Tensor, given: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(out, scale) of float32 values; rows are along the last dimension."""
    if dtype in FLOATS or dtype == torch.float64:
        return y.to(dtype), y.new_empty(0, dtype=torch.float32)
    top = largest(dtype)
    if given is not None:
        y = finite_or_nan(y) / given.to(y.dtype)
        return y.clamp(-top, top).to(dtype), y.new_empty(0, dtype=torch.float32)
    if dtype == torch.int8:
        scale = y.abs().amax(-1, keepdim=True).clamp(min=AMAX_FLOOR) / top
        return (y / scale).round().to(dtype), scale.float()
    scale = finite_size(y).amax(-1, keepdim=True).clamp(min=AMAX_FLOOR) / top
    return finite_or_nan(y / scale).to(dtype), scale.float()


def largest(dtype: torch.dtype) -> float:
    """What amax maps to."""
    return 127.0 if dtype == torch.int8 else torch.finfo(dtype).max


def check(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, given: Tensor | None, norm: str, block: int,
    activation: str, dtype: torch.dtype,
) -> None:  # fmt: skip
    if x.dim() < 1 or x.shape[-1] == 0 or x.dtype not in (*FLOATS, torch.float64):
        raise ValueError(f"loka::norm_quantize: x must be rows of floats, got {x.dtype} of shape {tuple(x.shape)}")
    check_norm("loka::norm_quantize", x.shape[-1], weight, bias, norm, block, activation)
    if dtype not in (*FLOATS, *FP8, torch.int8, torch.float64):
        raise ValueError(f"loka::norm_quantize: out cannot be {dtype}")
    if given is not None and (dtype not in FP8 or given.shape != (1,)):
        raise ValueError("loka::norm_quantize: a given scale is one number, shape (1,), and for FP8")


def check_norm(
    op: str, n: int, weight: Tensor | None, bias: Tensor | None, norm: str, block: int, activation: str
) -> None:
    if norm not in NORMS:
        raise ValueError(f"{op}: norm must be one of {', '.join(NORMS)}, got {norm!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if block < 0 or (block and n % block):
        raise ValueError(f"{op}: rows of {n} values have no whole blocks of {block}")
    for name, each in (("weight", weight), ("bias", bias)):
        if each is not None and each.shape != (n,):
            raise ValueError(f"{op}: {name} must have shape ({n},), got {tuple(each.shape)}")


# ---------------------------------------------------------------- the Triton kernel


if triton.knobs.runtime.interpret:  # which knows no libdevice

    @triton.jit
    def quotient(x, y):
        return x / y

else:

    @triton.jit
    def quotient(x, y):
        """To 2 ulp, one instruction and a multiplication; 0 where y is beyond 2^126."""
        return libdevice.fast_dividef(x, y)


@triton.jit
def gated(x, z):
    """x * sigmoid(z)"""
    return quotient(x, 1.0 + tl.exp2(z * -1.4426950408889634))


@triton.jit
def activated(y, ACTIVATION: tl.constexpr):
    """float32 in, float32 out; a NaN stays one."""
    if ACTIVATION == "relu":
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "silu":
        y = gated(y, y)
    elif ACTIVATION == "hard_swish":
        y = y * tl.minimum(tl.maximum(tl.fma(y, 1.0 / 6.0, 0.5), 0.0), 1.0)  # one instruction saturates
    elif ACTIVATION == "gelu":
        size = tl.abs(y)
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL) - size * upper_tail(size)
    return y


@triton.jit
def upper_tail(x):
    """P(a normal number > x) for x >= 0, to 1e-7: Abramowitz and Stegun 7.1.26, half the instructions of erf."""
    t = quotient(1.0, 1.0 + 0.23164189 * x)
    series = 0.5307027145 * t - 0.7265760135
    series = series * t + 0.7107068705
    series = series * t - 0.142248368
    series = series * t + 0.127414796
    return series * t * tl.exp2((x * -0.7213475204444817) * x)  # in this order MI300X keeps it in registers


@triton.jit
def maximum_or_nan(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def to_int8(y):
    """Rounded half to even: adding 1.5 * 2^23 leaves the integer in the low bits."""
    return (y + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def norm_quantize_kernel(
    x, weight, bias, given, out, scale, statistics, rows,
    N: tl.constexpr, BLOCKS: tl.constexpr, EPS: tl.constexpr, NORM: tl.constexpr, ACTIVATION: tl.constexpr,
    TOP: tl.constexpr, FLOOR: tl.constexpr, EVEN_ROWS: tl.constexpr,
    BM: tl.constexpr, BB: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """BM rows a program, each as BB blocks of BL values; TOP is 0 where out is not scaled."""
    LENGTH: tl.constexpr = N // BLOCKS
    EVEN: tl.constexpr = BB == BLOCKS and BL == LENGTH
    first = tl.program_id(0).to(tl.int64) * BM
    row = tl.arange(0, BM)
    blocks, columns = tl.arange(0, BB), tl.arange(0, BL)
    valid = (blocks < BLOCKS)[:, None] & (columns < LENGTH)[None, :]
    column = blocks[:, None] * LENGTH + columns[None, :]  # of the row
    offsets = row[:, None, None] * N + column[None, :, :]
    left = tl.minimum(rows - first, BM).to(tl.int32)
    if EVEN and EVEN_ROWS:
        loaded = tl.load(x + first * N + offsets)
    else:
        mask = (row < left)[:, None, None] & valid[None, :, :]
        loaded = tl.load(x + first * N + offsets, mask=mask, other=0.0)
    y = loaded.to(tl.float32)

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
    y = activated(y, ACTIVATION)

    if TOP != 0.0:
        if given is not None:
            y = tl.fma(y, 0.0, y) * (1.0 / tl.load(given))  # what is not finite is NaN from here on
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
                    y = tl.fma(y, 0.0, y)  # an infinity is NaN from here on; after a plain norm there is none
                amax = tl.max(tl.max(tl.abs(y), 2), 1)  # which passes over NaNs
                amax = tl.where(amax > FLOOR, amax, FLOOR)
            tl.store(scale + first + row, amax * (1.0 / TOP), mask=row < left)
            y = y * (TOP / amax)[:, None, None]
    result = to_int8(y) if TOP == 127.0 else y.to(out.dtype.element_ty)
    if EVEN and EVEN_ROWS:
        tl.store(out + first * N + offsets, result)
    else:
        tl.store(out + first * N + offsets, result, mask=mask)


def launch(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, given: Tensor | None, out: Tensor, scale: Tensor,
    statistics: Tensor, norm: str, block: int, activation: str, eps: float, arch: str,
) -> Launch:  # fmt: skip
    """x and out: contiguous. scale, statistics: as the op returns them."""
    n = x.shape[-1]
    rows = x.numel() // n
    length = block or n
    blocks = n // length
    bb, bl = triton.next_power_of_2(blocks), triton.next_power_of_2(length)
    values = 32 if blocks > 1 else 64  # a thread's: several rows, so that loads are in flight together
    lanes = 64 if arch.startswith("gfx") else 32
    warps = max(4, min(16, bb * bl // (lanes * values)))
    bm = max(1, min(warps * lanes * values // (bb * bl), triton.next_power_of_2(max(rows, 1))))
    args = {
        "x": x,
        "weight": weight,
        "bias": bias,
        "given": given,
        "out": out,
        "scale": scale if scale.numel() else None,
        "statistics": statistics if statistics.numel() else None,
        "rows": rows,
    }
    constants = {
        "N": n,
        "BLOCKS": blocks,
        "EPS": eps,
        "NORM": norm,
        "ACTIVATION": activation,
        "TOP": 0.0 if out.dtype in FLOATS else largest(out.dtype),
        "FLOOR": AMAX_FLOOR,
        "EVEN_ROWS": rows % bm == 0,
        "BM": bm,
        "BB": bb,
        "BL": bl,
    }
    nbytes = moved(x, weight, bias, out, scale, statistics)
    return Launch(norm_quantize_kernel, (triton.cdiv(rows, bm),), args, constants, warps, 1, 0, nbytes)


# ---------------------------------------------------------------- the op


@torch.library.custom_op("loka::norm_quantize", mutates_args=())
def norm_quantize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    given: Tensor | None,
    norm: str,
    block: int,
    activation: str,
    dtype: torch.dtype,
    eps: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    if not x.is_cuda or x.shape[-1] > LONGEST_ROW or x.dtype == torch.float64:
        out, *rest = reference(x, weight, bias, given, norm, block, activation, dtype, eps, save)
        return out.clone() if out is x else out, *rest  # an op's output is none of its inputs
    check(x, weight, bias, given, norm, block, activation, dtype)
    outputs = empty_outputs(x, given, norm, block, dtype, save)
    launch(x.contiguous(), weight, bias, given, *outputs, norm, block, activation, eps, arch_of(x)).run()
    return outputs


@norm_quantize.register_fake
def _(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    given: Tensor | None,
    norm: str,
    block: int,
    activation: str,
    dtype: torch.dtype,
    eps: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    check(x, weight, bias, given, norm, block, activation, dtype)
    return empty_outputs(x, given, norm, block, dtype, save)


def _keep(ctx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, _, *names, dtype, eps, _ = inputs
    norm, _, activation = names
    if (norm, activation, weight, bias) == ("none", "relu", None, None) and dtype == x.dtype:
        x = output[0]  # not above 0 where x is not, and read by what follows anyway
    ctx.save_for_backward(x, weight, bias, output[2])
    ctx.names, ctx.dtype, ctx.eps = names, dtype, eps


def _backward(ctx, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    from loka_compile.kernels.norm_quantize_backward import norm_quantize_backward  # which imports this module

    if ctx.dtype not in (*FLOATS, torch.float64):
        raise RuntimeError(f"loka::norm_quantize: {ctx.dtype} has no gradient; quantize after the norm in training")
    x, weight, bias, statistics = ctx.saved_tensors
    norm, block, activation = ctx.names
    rows = x.reshape(-1, x.shape[-1])
    if norm != "none" and not statistics.shape[-1]:  # nothing was saved
        statistics = normalize(rows.to(statistics.dtype), norm, block, ctx.eps)[1]
    kept = statistics.new_empty((rows.shape[0], 0)) if norm == "none" else statistics.flatten(0, -2)
    out, _, _, _, *sums, _ = norm_quantize_backward(
        grad.reshape(rows.shape), rows, kept, weight, bias, norm, block, activation, x.dtype, False, False, 1.0
    )
    of_vectors = (None if v is None else each for v, each in zip((weight, bias), sums, strict=True))
    return out.reshape(x.shape), *of_vectors, *[None] * 7


norm_quantize.register_autograd(_backward, setup_context=_keep)


def empty_outputs(
    x: Tensor, given: Tensor | None, norm: str, block: int, dtype: torch.dtype, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(out, scale, statistics) for rows like those of x."""
    rows, n = x.shape[:-1], x.shape[-1]
    scaled = given is None and dtype in (*FP8, torch.int8)
    scale = x.new_empty((*rows, 1) if scaled else (0,), dtype=torch.float32)
    saved = {"none": 0, "rms": 1, "layer": 2}[norm] * (n // (block or n)) if save else 0
    kept = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(x.shape, dtype=dtype), scale, x.new_empty((*rows, saved), dtype=kept)


def arch_of(x: Tensor) -> str:
    """What Triton compiles for on this tensor's GPU."""
    properties = torch.cuda.get_device_properties(x.device)
    return properties.gcnArchName.partition(":")[0] if torch.version.hip else f"sm_{properties.major}{properties.minor}"


def specimens(arch: str) -> list[Specimen]:
    """At the field's shapes, beside what Inductor runs without fusing the quantization."""
    fp8 = torch.float8_e4m3fnuz if arch == "gfx942" else torch.float8_e4m3fn

    def specimen(
        norm: str, activation: str, rows: int, n: int, block: int = 0, weights: int = 0, **more: torch.dtype
    ) -> Specimen:
        dtype = more.get("dtype", fp8)
        x = torch.empty(rows, n, dtype=torch.bfloat16, device="meta")
        weight, bias = (x.new_empty(n) if weights > i else None for i in (0, 1))
        outputs = empty_outputs(x, None, norm, block, dtype, False)
        made = launch(x, weight, bias, None, *outputs, norm, block, activation, 1e-6, arch)
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
