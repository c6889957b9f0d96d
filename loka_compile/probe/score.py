"""How wrong a GEMM becomes in a recipe's numerics: three errors against a float32 reference.

MERE and the median see small rows wiped out by a shared scale, the signal-to-noise ratio does not (LoKA Probe). The
floor in the denominator is ours: without it a benign product scores 0.33, because the mean is dominated by elements
near zero. It is taken row by row: of the whole output's root mean square it would hide just those small rows.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loka_compile.kernels.gemm.product import reference
from loka_compile.kernels.quantize import quantize
from loka_compile.spec.recipes import BLOCK, Recipe

FLOOR = 1e-2
"""Smallest denominator of a relative error, in units of the root mean square of the reference's row."""

VALUES = 2**20
"""About the most values of an operand that are scored."""


@dataclass(frozen=True)
class ErrorScore:
    """mere: mean of |out - ref| / max(|ref|, FLOOR * rms(row of ref)). median_rel: median of the same relative errors.
    sqnr_db: 10 log10(sum ref^2 / sum (out - ref)^2). Ratios; decibels."""

    mere: float = 0.0
    sqnr_db: float = math.inf
    median_rel: float = 0.0

    def worst(self, other: ErrorScore) -> ErrorScore:
        """The worse of both, each error by itself."""
        return ErrorScore(
            max(self.mere, other.mere), min(self.sqnr_db, other.sqnr_db), max(self.median_rel, other.median_rel)
        )

    def mean(self, other: ErrorScore, share: float) -> ErrorScore:
        """The mean of both errors, weighing the other one by `share`. Decibels are averaged as noise over signal."""
        mixed = lambda a, b: a if a == b else (1 - share) * a + share * b  # noqa: E731  # inf - inf is no number
        noise = mixed(*(10 ** min(-each.sqnr_db / 10, 300.0) for each in (self, other)))
        sqnr_db = -10 * math.log10(noise) if noise > 0 else math.inf
        return ErrorScore(mixed(self.mere, other.mere), sqnr_db, mixed(self.median_rel, other.median_rel))


def score(out: Tensor, ref: Tensor) -> ErrorScore:
    """All three errors; of nothing, or of equal tensors, they are 0, inf, 0.

    Where only one of both is finite the error is infinite; where neither is, there is nothing to compare: such
    elements are left out. The result is never NaN.
    """
    if out.shape != ref.shape:
        raise ValueError(f"cannot compare an output of shape {tuple(out.shape)} with a reference {tuple(ref.shape)}")
    out, ref = out.detach().double(), ref.detach().double()
    compared = out.isfinite() | ref.isfinite()
    error = torch.where(compared, torch.where(out.isfinite() & ref.isfinite(), (out - ref).abs(), math.inf), 0.0)
    ref = torch.where(ref.isfinite(), ref.abs(), 0.0)

    largest = max((x[x.isfinite()].max().item() for x in (ref, error) if x.isfinite().any()), default=0.0)
    if largest > 0:  # squares of very large or small values stay in range
        error, ref = error / largest, ref / largest
    signal, noise = ref.square().sum().item(), error.square().sum().item()
    if noise == 0:
        return ErrorScore()
    floor = FLOOR * ref.square().mean(dim=-1, keepdim=True).sqrt() if ref.dim() else FLOOR * ref
    relative = torch.where(error == 0, 0.0, error / torch.maximum(ref, floor))[compared]
    sqnr_db = 10 * math.log10(signal / noise) if signal > 0 and signal / noise > 0 else -math.inf
    return ErrorScore(relative.mean().item(), sqnr_db, relative.median().item())


def mere(out: Tensor, ref: Tensor) -> float:
    """Mean element-wise relative error."""
    return score(out, ref).mere


def sqnr_db(out: Tensor, ref: Tensor) -> float:
    """Signal to quantization noise, in decibels."""
    return score(out, ref).sqnr_db


def median_rel(out: Tensor, ref: Tensor) -> float:
    """Median element-wise relative error (of an even count, the lower one)."""
    return score(out, ref).median_rel


def product(lhs: Tensor, rhs: Tensor) -> Tensor:
    """The reference: lhs (..., M, K) @ rhs (..., K, N) in float32."""
    with exact():
        return lhs.float() @ rhs.float()


def emulate(
    recipe: Recipe,
    lhs: Tensor,
    rhs: Tensor,
    gradient: str = "",
    amax: tuple[float, float] | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """lhs (..., M, K) @ rhs (..., K, N) in a recipe's numerics, as float32: what the precision pass makes of a GEMM.

    gradient: which operand is one, as `Site.gradient`. amax: largest magnitudes of the whole operands where these
    are parts of them; a scale a tensor depends on them. keep: (K,) bool, the terms of the sum that are kept; the
    scales are those of all.
    """
    (a_dtype, a_scaling), (b_dtype, b_scaling) = (recipe.operand(s, gradient == s) for s in ("lhs", "rhs"))
    with exact():
        if recipe.scaling == "none":
            out = reference(_kept(lhs.to(a_dtype), keep), None, rhs.to(b_dtype), None, recipe.dtype)
        else:
            a = _quantized(lhs, a_dtype, a_scaling, -1, amax[0] if amax else None)
            b = _quantized(rhs, b_dtype, b_scaling, -2, amax[1] if amax else None)
            if keep is not None:
                a = _kept(quantize.dequantize(*a), keep), None
            out = reference(*a, *b, lhs.dtype)
        return out.to(lhs.dtype).float()


def _kept(a: Tensor, keep: Tensor | None) -> Tensor:
    """Zeros where a term is not kept."""
    return a if keep is None else torch.where(keep, a, 0)


def _quantized(x: Tensor, dtype: torch.dtype, scaling: str, axis: int, amax: float | None) -> tuple[Tensor, Any]:
    if scaling != "tensor" or amax is None or x.numel() == 0:
        return quantize.reference(x, dtype, scaling, axis)
    # One more slice that holds the amax, so that the scale is the whole tensor's; then it goes again.
    across = -3 - axis
    witness = torch.full_like(x.narrow(across, 0, 1), amax, dtype=torch.float32)
    q, scale = quantize.reference(torch.cat([x.float(), witness], across), dtype, scaling, axis)
    return q.narrow(across, 0, x.shape[across]), scale


def subsample(lhs: Tensor, rhs: Tensor, rows: int, columns: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """At most `rows` random rows of lhs and about `columns` columns of rhs, fewer where the contraction, which is kept
    whole, is very long.

    Columns come in whole runs of 128: a block's scale belongs to 128 of them. Of a batch of products, as many are
    kept as make up `rows`.
    """
    rows, columns = (slices(count, lhs.shape[-1]) for count in (rows, columns))
    if lhs.dim() == 3:
        keep = max(1, rows // max(1, min(lhs.shape[1], rows)))
        picked = _some(lhs.shape[0], keep, generator).to(lhs.device)
        lhs, rhs = lhs.index_select(0, picked), rhs.index_select(0, picked)
    if lhs.shape[-2] > rows:
        lhs = lhs.index_select(-2, _some(lhs.shape[-2], rows, generator).to(lhs.device))
    if rhs.shape[-1] > columns:
        rhs = rhs.index_select(-1, runs(rhs.shape[-1], columns, generator).to(rhs.device))
    return lhs, rhs


def slices(count: int, contraction: int) -> int:
    """How many of `count` slices of this length are scored."""
    return min(count, max(8, VALUES // max(1, contraction)))


def runs(size: int, count: int, generator: torch.Generator) -> Tensor:
    """About `count` of `size` indices, ascending, in whole aligned runs of 128."""
    starts = _some(-(-size // BLOCK), max(1, count // BLOCK), generator) * BLOCK
    indices = (starts[:, None] + torch.arange(BLOCK, device="cpu")).flatten()
    return indices[indices < size]


def _some(size: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` of `size` indices, drawn uniformly without replacement, ascending."""
    return torch.randperm(size, generator=generator, device="cpu")[:count].sort().values


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Full float32 products on plain tensors, whatever the model runs under (autocast, TF32, inference mode)."""
    precision = torch.get_float32_matmul_precision()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for device in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device, enabled=False))
        try:
            if precision != "highest":
                torch.set_float32_matmul_precision("highest")
            yield
        finally:
            if precision != "highest":
                torch.set_float32_matmul_precision(precision)
