"""triton: loka's own FP8 GEMM (kernels/gemm/triton_gemm.py) on NVIDIA and AMD GPUs, for batches too.

It multiplies bfloat16 only if what follows the product can ride in its epilogue (gemm_norm.py). Otherwise aten's
kernels are as good, and Inductor fuses with them.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from loka_compile.kernels.providers.base import Provider, missing
from loka_compile.spec.recipes import Recipe
from loka_compile.spec.site import Site
from loka_compile.spec.target import Target

ALIGNED = 16
OTHER_FP8 = ("mi300x",)
"""Targets whose tensor cores take e4m3fnuz and e5m2fnuz instead of the recipes' e4m3fn and e5m2."""


class Triton(Provider):
    """epilogue: scalings by row only. One scale a tensor would cost no less, and blocks are summed apart (fuse.py)."""

    name: ClassVar[str] = "triton"
    speaks: ClassVar[tuple[str, ...]] = ("bf16", "fp8_tensorwise", "fp8_rowwise", "fp8_blockwise")
    rank: ClassVar[int] = 45
    native: ClassVar[bool] = True
    epilogue: ClassVar[tuple[str, ...]] = ("none", "row")
    tile: ClassVar[int] = ALIGNED
    widest: ClassVar[int] = 512

    def multiple(self, recipe: Recipe, target: Target) -> int:
        """Rows that are not aligned would be loaded value by value: correct, but slower than what they replace."""
        return ALIGNED

    def reasons_against(self, site: Site, recipe: Recipe, target: Target) -> list[str]:
        reasons = missing("triton")
        if target.device != "cuda":
            reasons.append("Triton's kernels run on GPUs")
        other = target.name in OTHER_FP8 or (target.name == "cuda" and not _fp8_here())
        if other and recipe.itemsize == 1:
            reasons.append(f"{target} has no tensor cores for {recipe.dtype}")
        return reasons

    def product(
        self, a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, out_dtype: torch.dtype
    ) -> Tensor:
        from loka_compile.kernels.gemm.triton_gemm import triton_gemm

        repeatable = torch.are_deterministic_algorithms_enabled()
        written = torch.float32 if out_dtype == torch.float64 else out_dtype  # the dtype of its sums
        return triton_gemm(a, a_scale, b, b_scale, None, "none", written, repeatable).to(out_dtype)


PROVIDER = Triton()


def _fp8_here() -> bool:
    """Whether this machine's GPU has e4m3fn: Ada and later, CDNA 4."""
    if not torch.cuda.is_available():
        return False
    if torch.version.hip:
        return torch.cuda.get_device_properties().gcnArchName.startswith("gfx95")
    return torch.cuda.get_device_capability() >= (8, 9)
