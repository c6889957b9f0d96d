"""loka::gemm_norm: a linear, the norm of its output, an activation and a quantization, in the GEMM's epilogue.

    out, scale, statistics, product = gemm_norm(
        a, a_scale, b, b_scale, bias, residual, weight, shift, given, norm, block, activation, dtype, eps, save)

    p = (a * a_scale) @ (b * b_scale)^T + bias + residual
    out ~ activation(norm(p) * weight + shift) / scale          as loka::norm_quantize does from p on

a: (M, K) and b: (N, K), a linear's weight, both FP8 or both in one wider float dtype. a_scale: (M, 1) float32, greater
than 0, or None; b_scale: (N, 1) or (1,) float32, or None. bias, weight, shift: (N,) or None, of the linear and of the
norm. residual: (M, N) in a float dtype, or None. norm, block, activation, given, dtype, eps: those of
loka::norm_quantize, but that dtype is FP8 or a wider float.
norm `lazy` is an RMSNorm over rows of any length whose 1 / sqrt is left to the consumer: out is activation(p * weight),
activation `none` or `relu`, without shift; statistics are sums of squares of p over every 256 columns, (M, N / 256
rounded up); the consumer's `a_scale` is `lazy_rstd(statistics, N, eps)`, which a wider a may have too.
scale, statistics: as of loka::norm_quantize. product: with `save` p for the backward, (M, N), in the dtype of a, of FP8
operands in bfloat16; else (0, N).

Sums are of float32, and p is not rounded before out is. A kernel's tile spans 512 columns, so that norms over longer
rows and scales of longer rows take two kernels, with p in the dtype of `product` between them. Where out is FP8, the
kernel takes a weight or shift of 1e37 or more after `rms` or `layer` as not finite (its column is NaN), and, where
nothing is saved, `layer`'s variance from sums of one pass: to 1 % where a mean is 100 deviations from zero.
On CPUs, for operands of float32 and float64, and on GPUs that the kernel is not tuned for, the reference computes it.
Raises ValueError on other names, dtypes and shapes.
Source: LoKA BlockNorm (papers.md 1.3), multi-CTA norm and lazy norm of the fused normalization blog (papers.md 1.6).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from loka_compile.kernels import norm_quantize as norms
from loka_compile.kernels.gemm_norm_launch import LAZY, compiles_for, empty_outputs, launches, product_dtype
from loka_compile.kernels.launch import arch_of
from loka_compile.kernels.norm_quantize import FP8

WIDE = (*norms.FLOATS, torch.float64)


# ---------------------------------------------------------------- the specification


def reference(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    weight: Tensor | None,
    shift: Tensor | None,
    given: Tensor | None,
    norm: str,
    block: int,
    activation: str,
    dtype: torch.dtype,
    eps: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The specification; see the module's docstring."""
    check(a, a_scale, b, b_scale, bias, residual, weight, shift, given, norm, block, activation, dtype)
    wide = torch.float64 if a.dtype == torch.float64 else torch.float32
    left, right = a.to(wide), b.to(wide)
    left = left if a_scale is None else left * a_scale
    right = right if b_scale is None else right * b_scale
    return behind(left @ right.t(), a, bias, residual, weight, shift, given, norm, block, activation, dtype, eps, save)


def composed(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, *more: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The reference as a CPU runs it fast: of 16 bits by torch's own product, which rounds to them. What follows is for
    Inductor to fuse."""
    if a.dtype not in norms.HALVES:
        return reference(a, a_scale, b, b_scale, *more)
    check(a, a_scale, b, b_scale, *more[:9])
    p = (a @ b.t()).float()
    p = p if a_scale is None else p * a_scale
    return behind(p if b_scale is None else p * b_scale.reshape(-1), a, *more)


def behind(
    p: Tensor, a: Tensor, bias: Tensor | None, residual: Tensor | None, weight: Tensor | None, shift: Tensor | None,
    given: Tensor | None, norm: str, block: int, activation: str, dtype: torch.dtype, eps: float, save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """What follows the product p in float32, or float64."""
    p = norms.affine(p, None, bias)
    p = p if residual is None else p + residual.to(p.dtype)
    kept = p.to(product_dtype(a)) if save else p.new_empty((0, p.shape[1]), dtype=product_dtype(a))
    if norm == "lazy":
        y = norms.activate(norms.affine(p, weight, None), activation)
        return *norms.quantize_rows(y, given, dtype), sums_of_squares(p), kept
    return *norms.reference(p, weight, shift, given, norm, block, activation, dtype, eps, save), kept


def sums_of_squares(p: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(p, (0, -p.shape[1] % LAZY))
    return padded.unflatten(1, (-1, LAZY)).square().sum(-1)


def lazy_rstd(statistics: Tensor, n: int, eps: float) -> Tensor:
    """The factor of each row, (M, 1), that a lazy norm over n columns left to its consumer."""
    return torch.rsqrt(statistics.sum(-1, keepdim=True) / n + eps)


def check(
    a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, bias: Tensor | None, residual: Tensor | None,
    weight: Tensor | None, shift: Tensor | None, given: Tensor | None, norm: str, block: int, activation: str,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    op = "loka::gemm_norm"
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"{op}: a is (M, K) and b (N, K), got {tuple(a.shape)} and {tuple(b.shape)}")
    if a.dtype not in (*FP8, *WIDE) or (a.dtype != b.dtype and a.dtype not in FP8):
        raise ValueError(f"{op}: a and b are both FP8 or of one wider float dtype, got {a.dtype} and {b.dtype}")
    if (a.dtype in FP8) != (b.dtype in FP8) or not b.shape[0] or not b.shape[1]:
        raise ValueError(f"{op}: cannot multiply {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}")
    m, n = a.shape[0], b.shape[0]
    for name, scale, shapes in (("a_scale", a_scale, [(m, 1)]), ("b_scale", b_scale, [(n, 1), (1,)])):
        if scale is not None and tuple(scale.shape) not in shapes:
            raise ValueError(f"{op}: {name} must have a shape of {shapes}, got {tuple(scale.shape)}")
    if residual is not None and (tuple(residual.shape) != (m, n) or residual.dtype not in WIDE):
        raise ValueError(f"{op}: residual must be floats of {(m, n)}, got {residual.dtype} {tuple(residual.shape)}")
    norms.check_norm(op, n, weight, shift, "rms" if norm == "lazy" else norm, block, activation)
    norms.check_norm(op, n, bias, None, "none", 0, "none")
    if norm == "lazy" and (block or shift is not None or activation not in ("none", "relu")):
        raise ValueError(f"{op}: a lazy norm has whole rows, no shift, and activation none or relu")
    if norm == "lazy" and dtype in FP8 and given is None:
        raise ValueError(f"{op}: a lazy norm's rows are not seen whole, so they have no scale of their own")
    if dtype not in (*FP8, *WIDE):
        raise ValueError(f"{op}: out cannot be {dtype}")
    if given is not None and (dtype not in FP8 or given.shape != (1,)):
        raise ValueError(f"{op}: a given scale is one number, shape (1,), and for FP8")


# ---------------------------------------------------------------- the op


@torch.library.custom_op("loka::gemm_norm", mutates_args=())
def gemm_norm(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    weight: Tensor | None,
    shift: Tensor | None,
    given: Tensor | None,
    norm: str,
    block: int,
    activation: str,
    dtype: torch.dtype,
    eps: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    operands = a, a_scale, b, b_scale, bias, residual, weight, shift, given
    named = norm, block, activation
    if not a.is_cuda or not compiles_for(a, b, arch_of(a)):
        *outputs, product = reference(*operands, *named, dtype, eps, save)
        return *outputs, product.clone() if product is outputs[0] else product  # an op's outputs share no memory
    check(*operands, *named, dtype)
    outputs = empty_outputs(a, b, given, norm, block, dtype, save)
    dense = [each if each is None else each.contiguous() for each in operands]
    for each in launches(*dense, *outputs, *named, eps, arch_of(a)):
        each.run()
    return outputs


@gemm_norm.register_fake
def _(
    a: Tensor,
    a_scale: Tensor | None,
    b: Tensor,
    b_scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    weight: Tensor | None,
    shift: Tensor | None,
    given: Tensor | None,
    norm: str,
    block: int,
    activation: str,
    dtype: torch.dtype,
    eps: float,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check(a, a_scale, b, b_scale, bias, residual, weight, shift, given, norm, block, activation, dtype)
    return empty_outputs(a, b, given, norm, block, dtype, save)
