"""loka::grad_weight: the gradients of a linear's weight and bias, which both contract the output's gradient over rows.

    out, total = grad_weight(grad, x)          out = grad^T @ x; total = grad summed over its rows

grad: (R, M); x: (R, N), the linear's input; both bfloat16 or both float16.
out: (M, N) and total: (M,), in the same dtype.

Without this op two more kernels read grad for the bias. Sums are in float32 and always in the same order, so equal
operands give equal bits.
Raises ValueError for other dtypes and shapes.
Source: fused epilogues; cuBLASLt has one of this kind, CUBLASLT_EPILOGUE_BGRADA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple

import torch
from torch import Tensor

from loka_compile.kernels.gemm import triton_gemm_launch
from loka_compile.kernels.launch import Launch, Specimen, arch_of, moved
from loka_compile.kernels.norms import HALVES
from loka_compile.kernels.op import Op, T, contiguous, declare, dense

# ---------------------------------------------------------------- the declaration, the specification


class WeightGradient(NamedTuple, Generic[T]):
    out: T
    total: T


@dataclass(frozen=True)
class GradWeight(Op[T, WeightGradient[T]]):
    """See the module's docstring."""

    name: ClassVar[str] = "grad_weight"
    values: ClassVar[Any] = WeightGradient
    grad: T
    x: T


def reference(call: GradWeight[Tensor]) -> WeightGradient[Tensor]:
    """The specification; see the module's docstring."""
    check(call)
    grad, dtype = call.grad.float(), call.x.dtype
    return WeightGradient((grad.t() @ call.x.float()).to(dtype), grad.sum(0).to(dtype))


def check(call: GradWeight[Tensor]) -> None:
    op, grad, x = f"loka::{call.name}", call.grad, call.x
    if grad.dim() != 2 or x.dim() != 2 or grad.shape[0] != x.shape[0]:
        raise ValueError(f"{op}: grad must be (R, M) and x (R, N), got {tuple(grad.shape)} and {tuple(x.shape)}")
    if x.dtype not in HALVES or grad.dtype != x.dtype:
        raise ValueError(f"{op}: grad and x must both be bfloat16 or both float16, got {grad.dtype} and {x.dtype}")


# ---------------------------------------------------------------- its launches, the op


def launches(call: GradWeight[Tensor], outputs: WeightGradient[Tensor], arch: str) -> list[Launch]:
    """The launches of loka::triton_gemm, which also sum for the bias. Operands are contiguous."""
    a, (out, total) = call.grad.t(), outputs
    return triton_gemm_launch.launches(a, None, call.x, None, None, out, "none", True, arch, total)


def run(call: GradWeight[Tensor]) -> WeightGradient[Tensor]:
    if not call.x.is_cuda or not call.x.shape[0]:
        return dense(reference)(call)
    check(call)
    outputs = empty_outputs(call)
    for each in launches(contiguous(call), outputs, arch_of(call.x)):
        each.run()
    return outputs


grad_weight = declare(GradWeight, dense(reference), run)


def empty_outputs(call: GradWeight[Tensor]) -> WeightGradient[Tensor]:
    """Memory for the kernels' results."""
    grad, x = call.grad, call.x
    return WeightGradient(x.new_empty((grad.shape[1], x.shape[1])), x.new_empty(grad.shape[1]))


def specimens(arch: str) -> list[Specimen]:
    """At the field's shapes, against the product and the sum; of the second kernel the case with most parts."""

    def specimen(rows: int, m: int, n: int, finish: bool = False) -> Specimen:
        grad, x = (torch.empty(rows, each, dtype=torch.bfloat16, device="meta") for each in (m, n))
        call = GradWeight(grad, x)
        made = launches(call, empty_outputs(call), arch)[int(finish)]
        unfused = () if finish else (("gemm", made.flops, made.nbytes), ("sum", 0, moved(grad)))
        turned = arch not in (
            "sm_90",
            "sm_100",
            "sm_120",
        )  # operands are transposed in registers, which may read 64 bits a thread
        needs = () if finish else ("mma", *([] if turned else ["wide_loads"]), "wide_stores")
        return Specimen(f"grad_weight {'sum of parts ' * finish}{rows}x{m}x{n}", made, unfused, needs)

    return [
        specimen(65536, 256, 256),
        specimen(65536, 512, 512),
        specimen(4096, 512, 512),
        specimen(4096, 1024, 1024),
        specimen(4096, 64, 256),
        specimen(1024, 512, 512),
        specimen(65536, 256, 256, finish=True),
    ]
