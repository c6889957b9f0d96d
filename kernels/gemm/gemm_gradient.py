"""loka::gemm_gradient: the gradient of a linear's input, through the ReLU and the dropout that made that input.

    out, total = gemm_gradient(grad, weight, x, gain, summed)

    out = (grad @ weight) * gain where x is above 0 (or NaN), 0 elsewhere

grad: (M, K); weight: (K, N), as the linear has it; x: (M, N), the linear's input. All are bfloat16 or all float16, and
    so is out, (M, N).
gain: the factor by which dropout multiplied kept values; 1 without dropout.
total: (N,) with `summed`, else (0,); the sum of out over rows, before out is rounded. It is the gradient of a bias
    before the ReLU.

Sums are in float32 and always in the same order, so equal operands give equal bits. Without this op the product is
written, and read once more by loka::norm_quantize_backward.
Raises ValueError for other dtypes and shapes.
Source: fused epilogues; cuBLASLt has one of this kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from loka_compile.kernels.gemm.gemm_gradient_kernel import gemm_gradient_kernel
from loka_compile.kernels.gemm.triton_gemm import HALVES
from loka_compile.kernels.gemm.triton_gemm_launch import configuration, describable
from loka_compile.kernels.launch import Launch, Specimen, arch_of, moved
from loka_compile.kernels.norm_quantize.norm_quantize_backward_kernel import sums_kernel
from loka_compile.kernels.op import Op, T, contiguous, declare, dense

# ---------------------------------------------------------------- the declaration, the specification


class Gradient(NamedTuple, Generic[T]):
    out: T
    total: T


@dataclass(frozen=True)
class GemmGradient(Op[T, Gradient[T]]):
    """See the module's docstring."""

    name: ClassVar[str] = "gemm_gradient"
    values: ClassVar[Any] = Gradient
    grad: T
    weight: T
    x: T
    gain: float
    summed: bool


def reference(call: GemmGradient[Tensor]) -> Gradient[Tensor]:
    """The specification; see the module's docstring."""
    check(call)
    x = call.x
    product = (call.grad.float() @ call.weight.float()) * call.gain
    out = torch.where(x <= 0, 0.0, product)
    return Gradient(out.to(x.dtype), out.sum(0).to(x.dtype) if call.summed else x.new_empty(0))


def check(call: GemmGradient[Tensor]) -> None:
    op, grad, weight, x = f"loka::{call.name}", call.grad, call.weight, call.x
    shapes = [tuple(each.shape) for each in (grad, weight, x)]
    matrices = grad.dim() == weight.dim() == x.dim() == 2
    if not matrices or grad.shape[1] != weight.shape[0] or (grad.shape[0], weight.shape[1]) != tuple(x.shape):
        raise ValueError(f"{op}: grad must be (M, K), weight (K, N) and x (M, N), got {shapes}")
    if x.dtype not in HALVES or {grad.dtype, weight.dtype} != {x.dtype}:
        raise ValueError(f"{op}: all must be bfloat16 or all float16, got {grad.dtype}, {weight.dtype} and {x.dtype}")


# ---------------------------------------------------------------- its launches


def launches(call: GemmGradient[Tensor], outputs: Gradient[Tensor], arch: str) -> list[Launch]:
    """The product, and with `summed` a second kernel that adds the tiles' sums. Operands and outputs are contiguous."""
    grad, weight, x, out, total = call.grad, call.weight, call.x, *outputs
    (m, k), n = grad.shape, x.shape[1]
    bm, bn, bk, warps, stages, _ = configuration(m, n, 0, 1, x.element_size(), "twice", arch)
    hopper = arch in ("sm_90", "sm_100", "sm_120")
    tma = hopper and m > 0 and k > 0 and describable(grad) and describable(weight)
    tma_out = hopper and m > 0 and describable(out)
    described = TensorDescriptor.from_tensor
    tiles = triton.cdiv(m, bm)
    totals = x.new_empty((tiles, n), dtype=torch.float32) if total.numel() else None
    args = {
        "grad": described(grad.unsqueeze(0), [1, bm, bk]) if tma else grad,
        "weight": described(weight.unsqueeze(0), [1, bk, bn]) if tma else weight,
        "x": x,
        "out": described(out, [bm, bn]) if tma_out else out,
        "totals": totals,
        "M": m,
        "K": k,
    }
    constants = {
        "N": n,
        "GAIN": call.gain,
        "TMA": bool(tma),
        "TMA_OUT": bool(tma_out),
        "EVEN_M": m % bm == 0,
        "EVEN_K": k % bk == 0,
        "UPCAST": triton.knobs.runtime.interpret,
        "WIDE": arch.startswith("gfx"),
        "BM": bm,
        "BN": bn,
        "BK": bk,
    }
    nbytes = moved(grad, weight, x, out, totals)
    grid = (tiles * triton.cdiv(n, bn),)
    made = [Launch(gemm_gradient_kernel, grid, args, constants, warps, stages, 2 * m * n * k, nbytes)]
    if totals is not None:
        nothing = dict.fromkeys(("weight_sums", "bias_sums", "amaxes", "grad_weight", "grad_bias", "columns_amax"))
        args = {**nothing, "totals": totals, "total": total, "copy_scale": None, "parts": tiles}
        constants = {"N": n, "TOP": 1.0, "FLOOR": 1.0, "BP": 64, "BN": 32}
        made.append(Launch(sums_kernel, (triton.cdiv(n, 32),), args, constants, 4, 2, 0, moved(totals, total)))
    return made


# ---------------------------------------------------------------- the op


def run(call: GemmGradient[Tensor]) -> Gradient[Tensor]:
    x = call.x
    if not x.is_cuda or not x.shape[0]:
        return dense(reference)(call)
    check(call)
    outputs = empty_outputs(call)
    for each in launches(contiguous(call), outputs, arch_of(x)):
        each.run()
    return outputs


gemm_gradient = declare(GemmGradient, dense(reference), run)


def empty_outputs(call: GemmGradient[Tensor]) -> Gradient[Tensor]:
    """Memory for the kernels' results."""
    x = call.x
    return Gradient(x.new_empty(x.shape), x.new_empty(x.shape[1] if call.summed else 0))


def specimens(arch: str) -> list[Specimen]:
    """At the field's shapes, against the product and the activation's gradient. The second kernel is
    norm_quantize_backward's and is listed there."""

    def specimen(m: int, n: int, k: int, summed: bool = True) -> Specimen:
        grad, weight, x = (torch.empty(s, dtype=torch.bfloat16, device="meta") for s in ((m, k), (k, n), (m, n)))
        call = GemmGradient(grad, weight, x, 1.25, summed)
        made = launches(call, empty_outputs(call), arch)[0]
        size = moved(x)
        unfused = ("gemm", made.flops, moved(grad, weight) + size), ("gradient", 0, 3 * size)
        needs = ("mma", *([] if arch.startswith("gfx") else ["wide_loads"]), "wide_stores")  # see triton_gemm's
        return Specimen(f"gemm_gradient {'summed ' * summed}{m}x{n}x{k}", made, unfused, needs)

    return [
        specimen(4096, 512, 512),
        specimen(4096, 1024, 1024),
        specimen(65536, 512, 512),
        specimen(65536, 512, 512, summed=False),
        specimen(65536, 1024, 1024),
    ]
