"""loka::scaled_gemm: the product of two quantized matrices.

    out = (a * a_scale) @ (b * b_scale)

a: (M, K) or (B, M, K); b: (K, N) or (B, K, N); int8 (a also uint8), float8 or a 16-bit float. Scales as
loka::quantize makes them, None for a 16-bit operand. out: `out_dtype`. Products are summed in float32 (int32 for int8).
`provider` says whose kernel computes it where one is chosen; the reference, whatever the provider, is the plain
product of the dequantized operands in float32: any recipe's exact numerics, anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from loka_compile import compat
from loka_compile.kernels.op import Op, T, declare
from loka_compile.kernels.quantize import INTEGERS, dequantize
from loka_compile.processor import processor


def aten(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    """PyTorch's own kernels: `_int_mm`, `_scaled_mm` (one scale, or one a row), or a 16-bit `matmul`."""
    if a_scale is None or b_scale is None:
        return (a @ b).to(out_dtype)
    if a_scale.dim() > a.dim():  # affine: what its smallest values add goes by the columns' sums
        step, least = a_scale.unbind(-1)
        sums = dequantize(b, b_scale).sum(0, keepdim=True)
        return (int_mm(a, b).float() * step * b_scale + least * sums).to(out_dtype)
    if a.dtype in INTEGERS:
        return (int_mm(a, b).float() * a_scale * b_scale).to(out_dtype)
    if a_scale.dim() == 2:
        a_scale, b_scale = _unit_strides(a_scale, b_scale)
    written = torch.bfloat16 if a.is_cuda and a_scale.dim() == 2 else out_dtype  # CUDA's row-wise writes no other
    columns = b.t().contiguous().t()  # the kernel reads b by columns
    return torch._scaled_mm(a.contiguous(), columns, scale_a=a_scale, scale_b=b_scale, out_dtype=written).to(out_dtype)


def _unit_strides(a_scale: Tensor, b_scale: Tensor) -> tuple[Tensor, Tensor]:
    """One scale a row and a column, as `_scaled_mm` wants them: `contiguous` takes any stride of a dimension of 1."""
    return a_scale.reshape(-1).contiguous().unsqueeze(1), b_scale.reshape(-1).contiguous().unsqueeze(0)


def int_mm(a: Tensor, b: Tensor) -> Tensor:
    """torch._int_mm of (M, K), int8 or on CPUs uint8, and (K, N), int8, whatever the sizes and the processor.

    The CPU's misreads the strides of a matrix with a dimension of 1 and returns wrong numbers (seen with torch 2.13:
    M = 1 and strides (1, 1)), so such a dimension is padded to 2.
    """
    m, k, n = (int(compat.guard_free(size == 1)) for size in (*a.shape, b.shape[1]))
    if not (m or k or n):
        return _exact_int_mm(a, b)
    a, b = torch.nn.functional.pad(a, (0, k, 0, m)), torch.nn.functional.pad(b, (0, n, 0, k))
    return _exact_int_mm(a, b)[: a.shape[0] - m, : b.shape[1] - n]


def goes_by_parts(a: Tensor) -> bool:
    """Whether an integer product of `a` is two calls of torch._int_mm: one would saturate on this processor."""
    return a.device.type == "cpu" and a.dtype in INTEGERS and processor().int_mm_saturates


def _exact_int_mm(a: Tensor, b: Tensor) -> Tensor:
    """Where pairs of products are added in 16 bits the right operand goes in by parts that are small enough for that:
    twice its half, rounded down, and the bit that is left."""
    if goes_by_parts(a):
        return 2 * torch._int_mm(a, b >> 1) + torch._int_mm(a, b & 1)
    return torch._int_mm(a, b)


def int_mm_into(out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """int_mm into `out`: (M, N) int32, contiguous."""
    if 1 in (*a.shape, b.shape[1]) or goes_by_parts(a):
        return out.copy_(int_mm(a, b))
    return torch._int_mm(a, b, out=out)


def reference(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, out_dtype: torch.dtype
) -> Tensor:
    """The specification: operands dequantized to float32, then one float32 product."""
    left = a.float() if a_scale is None else dequantize(a, a_scale)
    right = b.float() if b_scale is None else dequantize(b, b_scale)
    return (left @ right).to(out_dtype)


def torchao(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    """torchao's products (seen with 0.18): int_scaled_matmul, and FP8 as its float8 linear runs it in inference."""
    assert a_scale is not None and b_scale is not None
    if a.dtype == torch.int8:
        from torchao.kernel.intmm import int_scaled_matmul

        return (int_scaled_matmul(a.contiguous(), b, a_scale.contiguous()) * b_scale).to(out_dtype)
    from torchao.float8.inference import addmm_float8_unwrapped_inference

    if a_scale.dim() == 2:
        a_scale, b_scale = _unit_strides(a_scale, b_scale)
    written = torch.bfloat16 if a.is_cuda and a_scale.dim() == 2 else out_dtype
    columns = b.t().contiguous().t()
    return addmm_float8_unwrapped_inference(a.contiguous(), a_scale, columns, b_scale, written).to(out_dtype)


def onednn(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    """oneDNN's quantized linear on a weight packed at every call; frozen weights go through kernels/onednn.py."""
    from loka_compile.kernels.onednn import product

    assert a_scale is not None and b_scale is not None
    packed = torch.ops.onednn.qlinear_prepack(b.mT.contiguous(), None)
    zero = torch.zeros(b_scale.numel(), dtype=torch.int32)
    return (product(a, (packed, b_scale.reshape(-1).contiguous(), zero)) * a_scale).to(out_dtype)


def fbgemm(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    """FBGEMM's row-wise FP8 product; it writes bfloat16."""
    import fbgemm_gpu.experimental.gen_ai  # noqa: F401  # registers the operator

    assert a_scale is not None and b_scale is not None
    rows, columns = a.contiguous(), b.t().contiguous()
    scales = a_scale.reshape(-1).contiguous(), b_scale.reshape(-1).contiguous()
    return torch.ops.fbgemm.f8f8bf16_rowwise(rows, columns, *scales).to(out_dtype)


def deep_gemm(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    """DeepGEMM's block-scaled FP8 product; it writes bfloat16."""
    import deep_gemm as library

    assert a_scale is not None and b_scale is not None
    out = a.new_empty((a.shape[0], b.shape[1]), dtype=torch.bfloat16)
    library.fp8_gemm_nt((a.contiguous(), a_scale), (b.t().contiguous(), b_scale.t().contiguous()), out)
    return out.to(out_dtype)


def triton(a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, out_dtype: torch.dtype) -> Tensor:
    """loka's own kernel (kernels/triton_gemm.py)."""
    from loka_compile.kernels.triton_gemm import triton_gemm

    repeatable = torch.are_deterministic_algorithms_enabled()
    return triton_gemm(a, a_scale, b, b_scale, None, "none", out_dtype, repeatable)


IMPLEMENTATIONS = {
    "aten": aten,
    "onednn": onednn,
    "torchao": torchao,
    "fbgemm": fbgemm,
    "deep_gemm": deep_gemm,
    "triton": triton,
    "emulated": reference,
}
"""A provider's computation, by the provider's name."""


@dataclass(frozen=True)
class ScaledGemm(Op[T, T]):
    """See the module's docstring."""

    name: ClassVar[str] = "scaled_gemm"
    a: T
    a_scale: T | None
    b: T
    b_scale: T | None
    out_dtype: torch.dtype
    provider: str


def product(call: ScaledGemm[Tensor]) -> Tensor:
    return IMPLEMENTATIONS[call.provider](*call.args[:-1])


def empty_output(call: ScaledGemm[Tensor]) -> Tensor:
    """As every provider gives it: the reference would ask for sizes to know what a scale is of."""
    return call.a.new_empty((*call.a.shape[:-1], call.b.shape[-1]), dtype=call.out_dtype)


scaled_gemm = declare(ScaledGemm, empty_output, product)
