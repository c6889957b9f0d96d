"""What else could do the work of loka's Triton kernels: torch's own products, Inductor's code, installed libraries."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-6
OTHER_WORK = {"of", "silu", "parts", "amax", "both", "tensor", "block", "tile"}
"""What the names of loka's plain kernels hold where no rival does the same: batches, epilogues, halves of the work."""
Call = Callable[[], object]


def missing(rival: str) -> str:
    """Why a rival cannot be here: the library that its name starts with is not installed."""
    library = rival.partition(" ")[0]
    if library in ("torchao", "fbgemm_gpu") and not importlib.util.find_spec(library):
        return f"{library} is not installed"
    return ""


def rivals(module: str, name: str, arch: str) -> dict[str, Callable[[str], Call]]:
    """By name, functions of a device that make operands and return the call.

    The sizes are those in the specimen's name: MxNxK of a product, RxC of rows, BxNxDxK of a factorization machine,
    BxHxTqxTkxD of attention; a name without any has no rivals.
    """
    found = re.search(r"(\d+(?:x\d+)+)", name)
    sizes = [int(size) for size in found.group(1).split("x")] if found else []
    fp8 = torch.float8_e4m3fnuz if arch == "gfx942" else torch.float8_e4m3fn
    if module.startswith("triton_") and OTHER_WORK & set(name.split()):
        return {}
    if module.startswith("gemm_norm") and " rms relu fp8 to fp8 " not in name:
        return {}
    if len(sizes) == 4 and "fm" in module:
        return interaction_rivals(*sizes)
    if len(sizes) == 5 and name.startswith("gdpa gelu ") and "jagged" not in name:
        return attention_rivals(*sizes)
    if len(sizes) == 3 and "gemm" in module:
        return gemm_rivals(*sizes, fp8, norm="norm" in module, tensorwise="tensor" in name)
    if len(sizes) == 2 and "backward" in module:
        same = " rms relu float8" in name and not name.endswith((" sums", " copy"))
        return backward_rivals(*sizes, fp8) if same else {}
    if len(sizes) == 2 and "quantize" in module:
        return quantize_rivals(*sizes, fp8, norm="norm" in module)
    return {}


def gemm_rivals(
    m: int, n: int, k: int, fp8: torch.dtype, norm: bool, tensorwise: bool
) -> dict[str, Callable[[str], Call]]:
    """A linear, with RMSNorm, ReLU and the quantization of what comes out where loka's kernel has them."""

    def plain(device: str) -> tuple[Tensor, Tensor]:
        x = torch.randn(m, k, device=device, dtype=torch.bfloat16)
        return x, torch.randn(n, k, device=device, dtype=torch.bfloat16) / k**0.5

    def ready(device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        (a, a_scale), (b, b_scale) = (quantized(each, fp8, tensorwise) for each in plain(device))
        return a, b.t(), a_scale, b_scale.t()

    def after(out: Tensor) -> object:
        return quantized(rms_norm(out).relu(), fp8) if norm else out

    def scaled(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor) -> object:
        out = torch._scaled_mm(a, b, a_scale, b_scale, out_dtype=torch.bfloat16, use_fast_accum=a.is_cuda)
        return after(out)

    def fbgemm(device: str) -> Call:
        importlib.import_module("fbgemm_gpu.experimental.gen_ai")  # registers its operators
        a, b, a_scale, b_scale = ready(device)
        scales = (a_scale.flatten().expand(m).contiguous(), b_scale.flatten().expand(n).contiguous())
        return lambda: after(torch.ops.fbgemm.f8f8bf16_rowwise(a, b.t(), *scales))

    return {
        "_scaled_mm, then Inductor" if norm else "_scaled_mm": lambda device: bound(scaled, ready(device), norm),
        "Inductor bf16": lambda device: bound(lambda x, w: after(F.linear(x, w)), plain(device), compiled=True),
        "torchao float8, Inductor": lambda device: torchao_linear(*plain(device), after),
        "fbgemm_gpu f8f8bf16_rowwise": fbgemm,
    }


def torchao_linear(x: Tensor, weight: Tensor, after: Callable[[Tensor], object]) -> Call:
    """A linear as torchao's row-wise dynamic quantization has it: its activation is quantized in the call."""
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_

    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=x.device, dtype=x.dtype)
    linear.weight.data.copy_(weight)
    model = torch.nn.Sequential(linear)
    quantize_(model, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()))
    call = torch.compile(lambda x: after(model(x)), dynamic=False)
    with torch.no_grad():
        call(x)
    return torch.no_grad()(lambda: call(x))


def quantize_rivals(rows: int, columns: int, fp8: torch.dtype, norm: bool) -> dict[str, Callable[[str], Call]]:
    """Row-wise, after RMSNorm and ReLU where loka's kernel has them."""

    def make(device: str) -> Call:
        x = torch.randn(rows, columns, device=device, dtype=torch.bfloat16)
        return bound(lambda x: quantized(rms_norm(x).relu() if norm else x, fp8), (x,), compiled=True)

    return {"Inductor": make}


def attention_rivals(batch: int, heads: int, queries: int, keys: int, width: int) -> dict[str, Callable[[str], Call]]:
    """gelu(Q K^T) V, and softmax attention of the same shape, which does the same products."""

    def operands(device: str) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (
            torch.randn(batch, heads, n, width, device=device, dtype=torch.bfloat16) for n in (queries, keys, keys)
        )
        return q, k, v

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.gelu(q @ k.mT) @ v

    return {
        "Inductor bf16": lambda device: bound(plain, operands(device), compiled=True),
        "scaled_dot_product_attention (softmax)": lambda device: bound(
            F.scaled_dot_product_attention, operands(device)
        ),
    }


def backward_rivals(rows: int, columns: int, fp8: torch.dtype) -> dict[str, Callable[[str], Call]]:
    """The gradient of RMSNorm and ReLU, quantized row-wise."""

    def gradient(grad: Tensor, x: Tensor) -> object:
        wide, g = x.float(), grad.float()
        rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
        n = wide * rstd
        g = torch.where(n <= 0, 0.0, g)
        return quantized((g - n * (g * n).mean(-1, keepdim=True)) * rstd, fp8)

    def make(device: str) -> Call:
        args = tuple(torch.randn(rows, columns, device=device, dtype=torch.bfloat16) for _ in range(2))
        return bound(gradient, args, compiled=True)

    return {"Inductor": make}


def interaction_rivals(batch: int, tokens: int, width: int, columns: int) -> dict[str, Callable[[str], Call]]:
    """X (X^T Y), flattened and normalized."""

    def make(device: str) -> Call:
        x = torch.randn(batch, tokens, width, device=device, dtype=torch.bfloat16)
        y = torch.randn(batch, tokens, columns, device=device, dtype=torch.bfloat16)
        return bound(lambda x, y: rms_norm((x @ (x.mT @ y)).flatten(1)), (x, y), compiled=True)

    return {"Inductor bf16": make}


def bound(function: Callable[..., object], args: tuple[Tensor, ...], compiled: bool = False) -> Call:
    call = torch.compile(function, dynamic=False) if compiled else function
    return lambda: call(*args)


def rms_norm(x: Tensor) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)).to(x.dtype)


def quantized(x: Tensor, fp8: torch.dtype, tensorwise: bool = False) -> tuple[Tensor, Tensor]:
    """In FP8 with one scale a row (or one in all, as a 1 x 1 tensor)."""
    wide = x.float()
    amax = wide.abs().amax().reshape(1, 1) if tensorwise else wide.abs().amax(-1, keepdim=True)
    scale = amax.clamp(min=1e-12) / torch.finfo(fp8).max
    return (wide / scale).to(fp8), scale
