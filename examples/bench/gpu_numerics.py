"""Every Triton kernel of loka against float64: one call of its op on a GPU, one plain formula in float64 on the CPU.

A case draws operands on the CPU, calls the op with them on the device and says what each output should be. An output is
right if every value lies within

    half a unit in its last place  +  what sums in float32 may lose (`slack`)

of the formula's. On a CPU the ops run their references: that checks the formulas here, and no kernel.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# The one look behind the public API: importing a kernel's module registers its op.
for name in (
    "norm_quantize.norm_quantize_both",
    "gemm_norm.gemm_norm",
    "gemm.gemm_gradient",
    "gemm.grad_weight",
    "quantize.triton_quantize",
    "gdpa.gdpa_pffn",
    "fm.fm",
):
    importlib.import_module(f"loka_compile.kernels.{name}")
OPS = torch.ops.loka

FP8, BF16 = torch.float8_e4m3fn, torch.bfloat16
HALF_ULP = {FP8: 2.0**-4, torch.int8: 0.0, BF16: 2.0**-8, torch.float32: 2.0**-23}
SUMS, SUMS_OF_FP8 = 2.0**-20, 2.0**-11
"""Error of a product's sum, as a share of the sum of its terms' sizes. Hopper's FP8 tensor cores add in 14 bits."""
EPS = 1e-5


@dataclass(frozen=True, eq=False)
class Output:
    """One output of an op. got: what the op gave, scales multiplied in. want: in float64. dtype: what it was rounded
    to. slack: how far float32 may be from float64 before the rounding, in the shape of `want` or one number."""

    name: str
    got: Tensor
    want: Tensor
    dtype: torch.dtype
    slack: Tensor | float

    @property
    def share(self) -> float:
        """The largest error as a share of what is allowed, infinite where a value is not finite. At most 1 is right."""
        allowed = HALF_ULP[self.dtype] * self.want.abs() * (1 + 2.0**-10) + self.slack + 1e-30
        error = (self.got.double().cpu() - self.want).abs() / allowed
        return float(error.max()) if bool(self.got.double().isfinite().all()) else math.inf


Case = Callable[[str], Iterator[Output]]


def cases() -> dict[str, Case]:
    """By name; each takes a device."""
    norms = {
        "rms relu to fp8": ("rms", 0, "relu", FP8),
        "layer silu to fp8": ("layer", 0, "silu", FP8),
        "block hard_swish to bf16": ("rms", 256, "hard_swish", BF16),
        "layer gelu to int8": ("layer", 0, "gelu", torch.int8),
    }
    products = {
        "fp8 rms relu to fp8": (FP8, "rms", 0, "relu", FP8),
        "fp8 layer silu to bf16": (FP8, "layer", 0, "silu", BF16),
        "bf16 block hard_swish to bf16": (BF16, "rms", 256, "hard_swish", BF16),
        "bf16 rms none to fp8": (BF16, "rms", 0, "none", FP8),
    }
    found: dict[str, Case] = {}
    for scaling in ("tensor", "row", "block", "tile"):
        for both in (False, True):
            key = f"triton_quantize {scaling}{' both' * both}"
            found[key] = lambda device, s=scaling, b=both: quantize(device, s, b)
    found |= {f"norm_quantize {key}": lambda device, v=v: norm_quantize(device, *v) for key, v in norms.items()}
    found["norm_quantize_both rms silu"] = norm_quantize_both
    for dtype, key in ((BF16, "bf16"), (FP8, "fp8")):
        found[f"norm_quantize_backward layer silu to {key}"] = lambda device, d=dtype: norm_backward(device, d)
    for scaling in ("none", "tensor", "row", "block"):
        found[f"triton_gemm {scaling}"] = lambda device, s=scaling: gemm(device, s)
    found["triton_gemm long sum"] = lambda device: gemm(device, "row", m=128, n=256, k=65536)
    found["triton_gemm batches"] = batches
    found |= {f"gemm_norm {key}": lambda device, v=v: gemm_norm(device, *v) for key, v in products.items()}
    found |= {"gemm_gradient": gemm_gradient, "grad_weight": grad_weight}
    found |= {f"fm {n} tokens": lambda device, n=n: factorization_machine(device, n) for n in (16, 64)}
    found |= {"gdpa": lambda device: attention(device, -1), "gdpa window": lambda device: attention(device, 8)}
    return found | {"pffn": pffn}


# ---------------------------------------------------------------- quantization and norms


def quantize(device: str, scaling: str, both: bool) -> Iterator[Output]:
    x = drawn(384, 512)
    q, scale, t, t_scale = OPS.triton_quantize(x.to(device), FP8, scaling, both)
    yield Output("rows", dequantized(q, scale, scaling, -1), x.double(), FP8, smallest(x))
    if both:
        t_scale = scale if scaling in ("tensor", "tile") else t_scale
        yield Output("columns", dequantized(t, t_scale, scaling, -2), x.double(), FP8, smallest(x))


def norm_quantize(device: str, norm: str, block: int, activation: str, dtype: torch.dtype) -> Iterator[Output]:
    x, weight, bias = drawn(300, 512), drawn(512), drawn(512)
    given = [each.to(device) for each in (x, weight, bias)]
    out, scale, _ = OPS.norm_quantize(*given, None, norm, block, activation, dtype, EPS, True)
    want = normed(x.double(), weight, bias, norm, block, activation)
    step = want.abs().amax(-1, keepdim=True) / 127 / 2 * 1.001 if dtype == torch.int8 else 0.0
    yield Output("out", out.float() * scale if scale.numel() else out, want, dtype, step + SUMS * 8 + smallest(want))


def norm_quantize_both(device: str) -> Iterator[Output]:
    x, weight = drawn(256, 512), drawn(512)
    out, scale, copy, copy_scale, _ = OPS.norm_quantize_both(
        x.to(device), weight.to(device), None, "rms", 0, "silu", FP8, EPS, True
    )
    want = normed(x.double(), weight, None, "rms", 0, "silu")
    slack = SUMS * 8 + smallest(want)
    yield Output("rows", out.float() * scale, want, FP8, slack)
    yield Output("columns", copy.float() * copy_scale, want.t(), FP8, slack)


def norm_backward(device: str, dtype: torch.dtype) -> Iterator[Output]:
    x, weight, bias, grad = drawn(256, 512), drawn(512), drawn(512), drawn(256, 512)
    on = [each.to(device) for each in (x, weight, bias)]
    statistics = OPS.norm_quantize(*on, None, "layer", 0, "silu", BF16, EPS, True)[2]
    out, scale, copy, copy_scale, grad_weight, grad_bias, _ = OPS.norm_quantize_backward(
        grad.to(device), on[0], statistics, on[1], on[2], "layer", 0, "silu", dtype, dtype == FP8, False, 1.0
    )
    leaves = [each.double().requires_grad_() for each in (x, weight, bias)]
    normed(leaves[0], leaves[1], leaves[2], "layer", 0, "silu").backward(grad.double())
    wants = [each.grad for each in leaves]
    slack = 2.0**-16 * wants[0].abs().amax(-1, keepdim=True) + smallest(wants[0])
    yield Output("grad_x", out.float() * scale if scale.numel() else out, wants[0], dtype, slack)
    if dtype == FP8:
        yield Output("grad_x, columns", copy.float() * copy_scale, wants[0].t(), FP8, slack.max())
    for key, got, want in (("grad_weight", grad_weight, wants[1]), ("grad_bias", grad_bias, wants[2])):
        yield Output(key, got, want, BF16, 2.0**-14 * want.abs().max())


def normed(x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: str, block: int, activation: str) -> Tensor:
    """Norm and activation in the dtype of x."""
    parts = x.unflatten(-1, (-1, block or x.shape[-1]))
    parts = parts - parts.mean(-1, keepdim=True) if norm == "layer" else parts
    n = (parts * (parts.square().mean(-1, keepdim=True) + EPS).rsqrt()).flatten(-2)
    n = n if weight is None else n * weight.to(x.dtype)
    n = n if bias is None else n + bias.to(x.dtype)
    functions = {"relu": torch.relu, "silu": F.silu, "hard_swish": F.hardswish, "gelu": F.gelu, "none": lambda x: x}
    return functions[activation](n)


# ---------------------------------------------------------------- products


def gemm(device: str, scaling: str, m: int = 1024, n: int = 512, k: int = 512) -> Iterator[Output]:
    x, w = drawn(m, k), drawn(k, n) / math.sqrt(k)
    if scaling == "none":
        got = OPS.triton_gemm(x.to(device), None, w.to(BF16).to(device), None, None, "none", BF16, True)
        yield Output("out", got, x.double() @ w.to(BF16).double(), BF16, SUMS * (x.abs().double() @ w.abs().double()))
        return
    weights = "tile" if scaling == "block" else scaling
    a, a_scale = quantized(x, scaling, -1)
    b, b_scale = quantized(w, weights, -2)
    got = OPS.triton_gemm(*on(device, a, a_scale, b, b_scale), None, "none", torch.float32, True)
    left, right = dequantized(a, a_scale, scaling, -1).double(), dequantized(b, b_scale, weights, -2).double()
    yield Output("out", got, left @ right, torch.float32, SUMS_OF_FP8 * (left.abs() @ right.abs()))


def batches(device: str) -> Iterator[Output]:
    a, b, bias = drawn(16, 128, 256), drawn(16, 256, 64), drawn(64)
    got = OPS.triton_gemm(a.to(device), None, b.to(device), None, bias.to(device), "silu", BF16, True)
    want = F.silu(a.double() @ b.double() + bias.double())
    yield Output("out", got, want, BF16, 1.2 * SUMS * (a.abs().double() @ b.abs().double()))


def gemm_norm(
    device: str, of: torch.dtype, norm: str, block: int, activation: str, dtype: torch.dtype
) -> Iterator[Output]:
    x, w, bias, weight = drawn(512, 384), drawn(512, 384) / 16, drawn(512), drawn(512)
    a, a_scale = quantized(x, "row", -1) if of == FP8 else (x, None)
    b, b_scale = quantized(w, "row", -1) if of == FP8 else (w, None)
    out, scale, _, _ = OPS.gemm_norm(
        *on(device, a, a_scale, b, b_scale, bias, None, weight, None, None), norm, block, activation, dtype, EPS, False
    )
    left, right = ((q if s is None else q.float() * s).double() for q, s in ((a, a_scale), (b, b_scale)))
    p = left @ right.t() + bias.double()
    want = normed(p, weight, None, norm, block, activation)
    lost = (SUMS_OF_FP8 if of == FP8 else SUMS) * (left.abs() @ right.t().abs()).amax(-1, keepdim=True)
    rstd = p.unflatten(-1, (-1, block or p.shape[-1])).var(-1, unbiased=False).rsqrt().amax(-1, keepdim=True)
    silu_by_tanh = 2.0**-11 * want.abs() if dtype == FP8 and activation in ("silu", "gelu") else 0.0
    slack = 3 * lost * rstd * weight.double().abs().max() + silu_by_tanh + smallest(want)
    yield Output("out", out.float() * scale if scale.numel() else out, want, dtype, slack)


def gemm_gradient(device: str) -> Iterator[Output]:
    grad, weight, x = drawn(512, 256), drawn(256, 384) / 16, drawn(512, 384).relu()
    out, total = OPS.gemm_gradient(*on(device, grad, weight, x), 1.25, True)
    want = torch.where(x > 0, grad.double() @ weight.double() * 1.25, 0.0)
    slack = 1.25 * SUMS * (grad.abs().double() @ weight.abs().double())
    yield Output("out", out, want, BF16, slack)
    yield Output("total", total, want.sum(0), BF16, slack.sum(0) + SUMS * want.abs().sum(0))


def grad_weight(device: str) -> Iterator[Output]:
    grad, x = drawn(4096, 256), drawn(4096, 128)
    out, total = OPS.grad_weight(*on(device, grad, x))
    wide, other = grad.double(), x.double()
    yield Output("out", out, wide.t() @ other, BF16, SUMS * (wide.abs().t() @ other.abs()))
    yield Output("total", total, wide.sum(0), BF16, SUMS * wide.abs().sum(0))


# ---------------------------------------------------------------- interactions and attention


def factorization_machine(device: str, tokens: int) -> Iterator[Output]:
    """X x^T is rounded to bfloat16 before the second product, where the kernel forms it."""
    x, y = drawn(64, tokens, 64), drawn(64, tokens, 32)
    got = OPS.fm(*on(device, x, y), None, None, "layer", EPS)
    wide, other = x.double(), y.double()
    o = wide @ (wide.mT @ other)
    flat = o.flatten(1)
    want = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, unbiased=False, keepdim=True) + EPS).sqrt()
    lost = (HALF_ULP[BF16] * (wide @ wide.mT).abs() @ other.abs()).flatten(1) / flat.std(1, keepdim=True)
    slack = lost + lost.mean(1, keepdim=True) * (1 + want.abs())
    yield Output("out", got.flatten(1), want, BF16, slack)


def attention(device: str, window: int) -> Iterator[Output]:
    """Activations and their gradients are rounded to bfloat16 before the second products."""
    q, k, v, grad = (drawn(4, 2, length, 64) / 4 for length in (96, 96, 96, 96))
    given = (None, None, 96, 96, "gelu", 1.0, False, window)
    got = OPS.gdpa(*on(device, q, k, v), *given)
    gradients = OPS.gdpa_backward(*on(device, grad, q, k, v), *given)
    leaves = [each.double().requires_grad_() for each in (q, k, v)]
    near = (torch.arange(96)[:, None] - torch.arange(96)).abs() <= (window if window >= 0 else 96)
    scores = torch.where(near, leaves[0] @ leaves[1].mT, 0.0)
    want = F.gelu(scores) @ leaves[2]
    want.backward(grad.double())
    act, values, g = F.gelu(scores).detach().abs(), leaves[2].detach().abs(), grad.double().abs()
    half = 1.1 * HALF_ULP[BF16]
    yield Output("out", got, want.detach(), BF16, half * act @ values + SUMS)
    ds = 1.2 * (g @ values.mT)  # GELU's slope is at most 1.13
    slacks = (half * ds @ leaves[1].detach().abs(), half * ds.mT @ leaves[0].detach().abs(), half * act.mT @ g)
    for key, one, leaf, slack in zip(("grad_q", "grad_k", "grad_v"), gradients, leaves, slacks, strict=True):
        yield Output(key, one, leaf.grad, BF16, slack + SUMS)


def pffn(device: str) -> Iterator[Output]:
    x, k, v = drawn(8, 64, 128), drawn(8, 2, 32, 64) / 4, drawn(8, 2, 32, 64) / 4
    got = OPS.pffn(*on(device, x, k, v), "gelu", 1.0, False, EPS, EPS)
    q = x.double()
    ln = F.layer_norm(q, (128,), eps=EPS)
    heads = ln.unflatten(-1, (2, 64)).transpose(1, 2)
    act = F.gelu(heads @ k.double().mT)
    z = (act @ v.double()).transpose(1, 2).flatten(-2) + ln
    rstd = (z.square().mean(-1, keepdim=True) + EPS).rsqrt()
    # LayerNorm's output and the activation are rounded to bfloat16 on their way into the products
    moved = 1.2 * (ln.abs().unflatten(-1, (2, 64)).transpose(1, 2) @ k.double().abs().mT) + act.abs()
    lost = HALF_ULP[BF16] * ((moved @ v.double().abs()).transpose(1, 2).flatten(-2) + ln.abs())
    slack = lost * rstd + z.abs() * rstd * (lost * rstd).mean(-1, keepdim=True)
    yield Output("out", got, z * rstd + q, BF16, slack + SUMS)


# ---------------------------------------------------------------- pieces


def drawn(*shape: int) -> Tensor:
    """Normal values in bfloat16, from torch's generator."""
    return torch.randn(*shape).to(BF16)


def on(device: str, *values: Tensor | None) -> list[Tensor | None]:
    return [None if value is None else value.to(device) for value in values]


def smallest(x: Tensor) -> float:
    """Half the distance of FP8's smallest numbers, at the largest scale that x has: of the whole tensor."""
    return float(x.double().abs().max()) / 448 * 2.0**-10


def quantized(x: Tensor, scaling: str, axis: int) -> tuple[Tensor, Tensor]:
    return torch.ops.loka.quantize(x, FP8, scaling, axis)


def dequantized(q: Tensor, scale: Tensor, scaling: str, axis: int) -> Tensor:
    """q * scale in float32, on the CPU; scales as loka::quantize shapes them."""
    wide, scale = q.float().cpu(), scale.cpu()
    if scaling in ("block", "tile"):
        axes = (-1, -2) if scaling == "tile" else (axis,)
        for each in axes:
            scale = scale.repeat_interleave(128, each).narrow(each, 0, wide.shape[each])
    return wide * scale
