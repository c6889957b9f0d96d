"""loka::grad_weight: the gradient of a linear's weight, and of its bias, which both contract the output's gradient.

    out, total = grad_weight(grad, x)          out = grad^T @ x; total = grad summed over its rows

grad: (R, M), x: (R, N), the linear's input; both bfloat16 or both float16, and so are out, (M, N), and total, (M,).
Without this grad is read once more for the bias, by two kernels. Sums are of float32, in one order: equal operands give
equal bits. Raises ValueError on other dtypes and shapes. Source: fused epilogues (papers.md 1.6); cuBLASLt has one of
this kind, CUBLASLT_EPILOGUE_BGRADA.
"""

from __future__ import annotations

import torch
from torch import Tensor

from loka_compile.kernels import triton_gemm_launch
from loka_compile.kernels.launch import Launch, Specimen, arch_of, moved
from loka_compile.kernels.norm_quantize import HALVES

# ---------------------------------------------------------------- the specification


def reference(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The specification; see the module's docstring."""
    check(grad, x)
    wide = grad.float()
    return (wide.t() @ x.float()).to(x.dtype), wide.sum(0).to(x.dtype)


def check(grad: Tensor, x: Tensor) -> None:
    op = "loka::grad_weight"
    if grad.dim() != 2 or x.dim() != 2 or grad.shape[0] != x.shape[0]:
        raise ValueError(f"{op}: grad is (R, M) and x (R, N), got {tuple(grad.shape)} and {tuple(x.shape)}")
    if x.dtype not in HALVES or grad.dtype != x.dtype:
        raise ValueError(f"{op}: both are bfloat16 or both float16, got {grad.dtype} and {x.dtype}")


# ---------------------------------------------------------------- its launches, the op


def launches(grad: Tensor, x: Tensor, out: Tensor, total: Tensor, arch: str) -> list[Launch]:
    """Of loka::triton_gemm, with the sums. grad and x contiguous."""
    return triton_gemm_launch.launches(grad.t(), None, x, None, None, out, "none", True, arch, total)


@torch.library.custom_op("loka::grad_weight", mutates_args=())
def grad_weight(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    if not x.is_cuda or not x.shape[0]:
        return reference(grad, x)
    check(grad, x)
    outputs = empty_outputs(grad, x)
    for each in launches(grad.contiguous(), x.contiguous(), *outputs, arch_of(x)):
        each.run()
    return outputs


@grad_weight.register_fake
def _(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    check(grad, x)
    return empty_outputs(grad, x)


def empty_outputs(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """(out, total)"""
    return x.new_empty((grad.shape[1], x.shape[1])), x.new_empty(grad.shape[1])


def specimens(arch: str) -> list[Specimen]:
    """At the field's shapes, beside the product and the sum; of the second kernel the one with most parts."""

    def specimen(rows: int, m: int, n: int, finish: bool = False) -> Specimen:
        grad, x = (torch.empty(rows, each, dtype=torch.bfloat16, device="meta") for each in (m, n))
        made = launches(grad, x, *empty_outputs(grad, x), arch)[int(finish)]
        unfused = () if finish else (("gemm", made.flops, made.nbytes), ("sum", 0, moved(grad)))
        turned = arch not in ("sm_90", "sm_100", "sm_120")  # in registers, where operands may be read by 64 bits
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
