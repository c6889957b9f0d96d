"""loka::frozen_gemm_norm: loka::gemm_norm with a parameter that is quantized once, not at every call.

    out, scale, statistics, product = frozen_gemm_norm(
        a, a_scale, parameter, transposed, of, bias, residual, weight, shift, norm, block, activation, dtype, eps, save,
        centered)

parameter: (K, N), or (N, K) with `transposed` (a linear's), quantized to `of` by rows along K, or cast to it where it
is a 16-bit float; padded with zeros along K to what a has. The rest as in loka::gemm_norm, given None.
centered: for a `layer` norm of whole rows, with no residual and nothing saved, whose bias is a parameter too. A row's
mean is that of parameter and bias over N, taken out of both before they are quantized:

    y - mean(y) = a @ (W - mean of W over N) + (bias - mean(bias))

so what is left to the kernel is an RMSNorm, and the quantization's steps are not spent on what the norm would remove.
Raises ValueError where such a mean is not all that `layer` takes away.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from loka_compile.kernels import frozen
from loka_compile.kernels import gemm_norm as gemm_norms
from loka_compile.kernels.gemm_norm import gemm_norm
from loka_compile.kernels.gemm_norm_launch import empty_outputs
from loka_compile.kernels.norm_quantize import FP8
from loka_compile.kernels.providers.aten import frozen_mm


def rows_of(
    parameter: Tensor, transposed: bool, of: torch.dtype, k: int, centered: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The parameter as loka::gemm_norm reads it: (N, k), contiguous, and its scales (N, 1)."""

    def make(tensor: Tensor) -> tuple[Tensor, Tensor | None]:
        tensor = without_mean(tensor, 0 if transposed else 1) if centered else tensor
        q, scale = frozen.right_operand(tensor, transposed, of, "row" if of in FP8 else "none", k)
        return q.mT.contiguous(), None if scale is None else scale.reshape(-1, 1)

    return frozen.frozen(parameter, ("rows", transposed, of, k, centered), make)


def without_mean(tensor: Tensor, dim: int) -> Tensor:
    """In float32, or float64."""
    wide = tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
    return wide - wide.mean(dim, keepdim=True)


def can_center(n: int, residual: Any, norm: str, block: int, save: bool) -> bool:
    """Whether the mean that the norm takes away is one of the product, and nothing else asks for it."""
    return norm == "layer" and block in (0, n) and residual is None and not save


def composed(
    a: Tensor, a_scale: Tensor | None, parameter: Tensor, transposed: bool, of: torch.dtype, *more: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op as a CPU runs it fast: a frozen product of 16 bits, Inductor does the rest. See loka::gemm_norm's."""
    more = *more[:4], None, *more[4:10]  # without `centered`, which changes no value
    if of in FP8:
        return gemm_norms.reference(a, a_scale, *rows_of(parameter, transposed, of, a.shape[1]), *more)
    p = frozen_mm(a, parameter, transposed).float()
    return gemm_norms.behind(p if a_scale is None else p * a_scale, a, *more)


@torch.library.custom_op("loka::frozen_gemm_norm", mutates_args=())
def frozen_gemm_norm(
    a: Tensor,
    a_scale: Tensor | None,
    parameter: Tensor,
    transposed: bool,
    of: torch.dtype,
    bias: Tensor | None,
    residual: Tensor | None,
    weight: Tensor | None,
    shift: Tensor | None,
    norm: str,
    block: int,
    activation: str,
    dtype: torch.dtype,
    eps: float,
    save: bool,
    centered: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n = parameter.shape[0 if transposed else 1]
    if centered and not can_center(n, residual, norm, block, save):
        raise ValueError(
            f"loka::frozen_gemm_norm: no mean to take out beforehand of norm {norm!r} by {block or n} of {n}"
        )
    b, b_scale = rows_of(parameter, transposed, of, a.shape[1], centered)
    if centered:
        norm = "rms"
        bias = bias if bias is None else frozen.frozen(bias, "centered", lambda b: without_mean(b, 0).to(b.dtype))
    rest = bias, residual, weight, shift, None, norm, block, activation, dtype, eps, save
    return gemm_norm(a, a_scale, b, b_scale, *rest)


@frozen_gemm_norm.register_fake
def _(
    a: Tensor,
    a_scale: Tensor | None,
    parameter: Tensor,
    transposed: bool,
    of: torch.dtype,
    bias: Tensor | None,
    residual: Tensor | None,
    weight: Tensor | None,
    shift: Tensor | None,
    norm: str,
    block: int,
    activation: str,
    dtype: torch.dtype,
    eps: float,
    save: bool,
    centered: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b = parameter if transposed else parameter.mT
    return empty_outputs(a, b, None, norm, block, dtype, save)
