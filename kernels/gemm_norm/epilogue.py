"""The epilogue of loka::gemm_norm: bias, residual, norm, activation and quantization of a product in registers.

    p = product + bias + residual
    out ~ activation(norm(p) * weight + shift) / scale          as loka::norm_quantize does from p on

bias, weight, shift: (N,) or None.
residual: (M, N) in a float dtype, or None.
norm, block, activation, given, eps: those of loka::norm_quantize.
dtype: FP8 or a wider float.
save: also write p and the statistics, for a backward.

norm `lazy` is an RMSNorm over rows of any length that leaves its factor to the consumer. out is activation(p * weight),
with activation `none` or `relu` and no shift. statistics: (M, N / 256 rounded up), the sums of squares of p over every
256 columns. The trick: a positive factor a row commutes with both activations and with the next product, so the
consumer's `a_scale` is `lazy_rstd(statistics, N, eps)`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, NamedTuple

import torch
from torch import Tensor

from loka_compile.kernels import norms
from loka_compile.kernels.norm_quantize import norm_quantize
from loka_compile.kernels.norm_quantize.norm_quantize import NormQuantize
from loka_compile.kernels.norms import FP8, RowNorm
from loka_compile.kernels.op import Op, T

WIDE = (*norms.FLOATS, torch.float64)
LAZY = 256
"""Columns of one sum of squares of a lazy norm."""


@dataclass(frozen=True)
class Epilogue(Generic[T]):
    """See the module's docstring."""

    bias: T | None
    residual: T | None
    weight: T | None
    shift: T | None
    given: T | None
    row: RowNorm


class Fused(NamedTuple, Generic[T]):
    """The results.

    out: (M, N).
    scale, statistics: those of loka::norm_quantize.
    product: p, (M, N), with `save`; else (0, N).
    """

    out: T
    scale: T
    statistics: T
    product: T


@dataclass(frozen=True)
class GemmNorm(Op[T, Fused[T]]):
    """See kernels/gemm_norm/gemm_norm.py."""

    name: ClassVar[str] = "gemm_norm"
    values: ClassVar[Any] = Fused
    a: T
    a_scale: T | None
    b: T
    b_scale: T | None
    epilogue: Epilogue[T]


def product_dtype(a: Tensor) -> torch.dtype:
    """The dtype of the product where it is written: bfloat16 for FP8 operands, else that of the operands."""
    return torch.bfloat16 if a.dtype in FP8 else a.dtype


def behind(p: Tensor, dtype: torch.dtype, epilogue: Epilogue[Tensor]) -> Fused[Tensor]:
    """The epilogue's results for a product p in float32 or float64. dtype: that in which p is written."""
    row, p = epilogue.row, norms.affine(p, None, epilogue.bias)
    p = p if epilogue.residual is None else p + epilogue.residual.to(p.dtype)
    kept = p.to(dtype) if row.save else p.new_empty((0, p.shape[1]), dtype=dtype)
    if row.norm == "lazy":
        y = norms.activate(norms.affine(p, epilogue.weight, None), row.activation)
        return Fused(*norms.quantize_rows(y, epilogue.given, row.dtype), sums_of_squares(p), kept)
    return Fused(*norm_quantize.reference(of_rows(p, epilogue)), kept)


def of_rows(p: Tensor, epilogue: Epilogue[Tensor]) -> NormQuantize[Tensor]:
    """The epilogue from p on, as a loka::norm_quantize; for a lazy norm without the part left to the consumer."""
    row = epilogue.row
    row = replace(row, norm="none", save=False) if row.norm == "lazy" else row
    return NormQuantize(p, epilogue.weight, epilogue.shift, epilogue.given, row)


def sums_of_squares(p: Tensor) -> Tensor:
    """(M, N / LAZY rounded up) of p (M, N)."""
    padded = torch.nn.functional.pad(p, (0, -p.shape[1] % LAZY))
    return padded.unflatten(1, (-1, LAZY)).square().sum(-1)


def lazy_rstd(statistics: Tensor, n: int, eps: float) -> Tensor:
    """The factor of each row, (M, 1), that a lazy norm over n columns leaves to its consumer."""
    return torch.rsqrt(statistics.sum(-1, keepdim=True) / n + eps)


def check_epilogue(op: str, m: int, n: int, epilogue: Epilogue[Tensor]) -> None:
    """Raises ValueError if this cannot be the epilogue of a product (m, n)."""
    residual, row, given = epilogue.residual, epilogue.row, epilogue.given
    norm, dtype = row.norm, row.dtype
    if residual is not None and (tuple(residual.shape) != (m, n) or residual.dtype not in WIDE):
        raise ValueError(f"{op}: residual must be floats of {(m, n)}, got {residual.dtype} {tuple(residual.shape)}")
    kind = "rms" if norm == "lazy" else norm
    norms.check_norm(op, n, epilogue.weight, epilogue.shift, kind, row.block, row.activation)
    norms.check_norm(op, n, epilogue.bias, None, "none", 0, "none")
    if norm == "lazy" and (row.block or epilogue.shift is not None or row.activation not in ("none", "relu")):
        raise ValueError(f"{op}: a lazy norm must go over whole rows, without shift, with activation none or relu")
    if norm == "lazy" and dtype in FP8 and given is None:
        raise ValueError(f"{op}: a lazy norm does not see whole rows, so FP8 needs a given scale")
    if dtype not in (*FP8, *WIDE):
        raise ValueError(f"{op}: out must be FP8 or a wider float, got {dtype}")
    if given is not None and (dtype not in FP8 or given.shape != (1,)):
        raise ValueError(f"{op}: given must have shape (1,) and goes with FP8, got {tuple(given.shape)} with {dtype}")


def empty_outputs(call: GemmNorm[Tensor]) -> Fused[Tensor]:
    """Memory for the kernels' results."""
    epilogue, product = call.epilogue, empty_product(call)
    m, n = product.shape
    written = norm_quantize.empty_outputs(of_rows(product, epilogue))
    if epilogue.row.norm == "lazy":
        kept = torch.float64 if product.dtype == torch.float64 else torch.float32
        written = written._replace(statistics=product.new_empty((m, -(-n // LAZY)), dtype=kept))
    return Fused(*written, product if epilogue.row.save else product.new_empty((0, n)))


def empty_product(call: GemmNorm[Tensor]) -> Tensor:
    return call.a.new_empty((call.a.shape[0], call.b.shape[0]), dtype=product_dtype(call.a))
