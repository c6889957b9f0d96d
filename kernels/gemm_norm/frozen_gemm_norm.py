"""loka::frozen_gemm_norm: loka::gemm_norm with a parameter that is quantized once instead of at every call.

    out, scale, statistics, product = frozen_gemm_norm(a, a_scale, parameter, transposed, b_dtype, *epilogue, centered)

parameter: (K, N), or (N, K) with `transposed` (a linear's). It is quantized to `b_dtype` with one scale a column of (K,
N), or cast to it if that is a 16-bit float, and padded with zeros along K to a's size. The rest as in loka::gemm_norm.

centered: the mean that a `layer` norm subtracts is taken out of weight and bias beforehand:

    y - mean(y) = a @ (W - mean of W over N) + (bias - mean(bias))

The trick: the kernel is then left with an RMSNorm, and the quantization spends no steps on what the norm would remove.
It needs whole rows, no residual, nothing saved, and a bias that is a parameter.
Raises ValueError otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from loka_compile.kernels import frozen
from loka_compile.kernels.gemm_norm import gemm_norm
from loka_compile.kernels.gemm_norm.epilogue import Epilogue, Fused, GemmNorm, behind, empty_outputs, product_dtype
from loka_compile.kernels.norms import FP8
from loka_compile.kernels.op import Op, T, declare
from loka_compile.kernels.providers.aten import frozen_mm


@dataclass(frozen=True)
class FrozenGemmNorm(Op[T, Fused[T]]):
    """See the module's docstring."""

    name: ClassVar[str] = "frozen_gemm_norm"
    values: ClassVar[Any] = Fused
    a: T
    a_scale: T | None
    parameter: T
    transposed: bool
    b_dtype: torch.dtype
    epilogue: Epilogue[T]
    centered: bool = False


def rows_of(
    parameter: Tensor, transposed: bool, of: torch.dtype, k: int, centered: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The parameter as loka::gemm_norm reads it: (N, k), contiguous, with its scales (N, 1)."""

    def make(tensor: Tensor) -> tuple[Tensor, Tensor | None]:
        tensor = without_mean(tensor, 0 if transposed else 1) if centered else tensor
        q, scale = frozen.right_operand(tensor, transposed, of, "row" if of in FP8 else "none", k)
        return q.mT.contiguous(), None if scale is None else scale.reshape(-1, 1)

    return frozen.frozen(parameter, ("rows", transposed, of, k, centered), make)


def without_mean(tensor: Tensor, dim: int) -> Tensor:
    """The tensor minus its mean along `dim`, in float32 or float64."""
    wide = tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
    return wide - wide.mean(dim, keepdim=True)


def can_center(n: int, epilogue: Epilogue[Any]) -> bool:
    """Whether the norm subtracts the product's own mean, and nothing else reads the product."""
    row = epilogue.row
    return row.norm == "layer" and row.block in (0, n) and epilogue.residual is None and not row.save


def columns(call: FrozenGemmNorm[Tensor]) -> int:
    """N."""
    return call.parameter.shape[0 if call.transposed else 1]


def quantized(call: FrozenGemmNorm[Tensor]) -> GemmNorm[Tensor]:
    """The call with the parameter quantized as it is now."""
    rows = rows_of(call.parameter, call.transposed, call.b_dtype, call.a.shape[1], call.centered)
    return GemmNorm(call.a, call.a_scale, *rows, call.epilogue)


def composed(call: FrozenGemmNorm[Tensor]) -> Fused[Tensor]:
    """The op as a CPU runs it fast: a frozen 16-bit product, then plain operations for Inductor to fuse. See
    loka::gemm_norm."""
    call = replace(call, centered=False)  # centering changes no value
    if call.b_dtype in FP8:
        return gemm_norm.reference(quantized(call))
    p = frozen_mm(call.a, call.parameter, call.transposed).float()
    return behind(p if call.a_scale is None else p * call.a_scale, product_dtype(call.a), call.epilogue)


def run(call: FrozenGemmNorm[Tensor]) -> Fused[Tensor]:
    epilogue, n = call.epilogue, columns(call)
    if call.centered and not can_center(n, epilogue):
        what = f"norm {epilogue.row.norm!r} by {epilogue.row.block or n} of {n}"
        raise ValueError(
            f"loka::{call.name}: centered needs a layer norm of whole rows, no residual and nothing saved; got {what}"
        )
    made = quantized(call)
    if call.centered:
        bias = epilogue.bias
        if bias is not None:
            bias = frozen.frozen(bias, "centered", lambda b: without_mean(b, 0).to(b.dtype))
        made = replace(made, epilogue=replace(epilogue, row=replace(epilogue.row, norm="rms"), bias=bias))
    return made()


def empty(call: FrozenGemmNorm[Tensor]) -> Fused[Tensor]:
    """The results' memory, from sizes alone; a fake parameter is not quantized."""
    b = call.parameter if call.transposed else call.parameter.mT
    return empty_outputs(GemmNorm(call.a, call.a_scale, b, None, call.epilogue))


frozen_gemm_norm = declare(FrozenGemmNorm, empty, run, gradient="never")
