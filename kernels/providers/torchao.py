"""torchao: its int8 product with row scales, and its FP8 products. Seen with torchao 0.18.

On CPUs it calls PyTorch's own kernels, so aten's time is its time. Importing it takes a second and adds to what Dynamo
guards: a flex_attention that was compiled before is compiled again.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from loka_compile.kernels.providers import aten
from loka_compile.kernels.providers.base import Provider, missing
from loka_compile.spec.processor import processor
from loka_compile.spec.recipes import Recipe
from loka_compile.spec.site import Site
from loka_compile.spec.target import Target


class Torchao(Provider):
    name: ClassVar[str] = "torchao"
    speaks: ClassVar[tuple[str, ...]] = ("int8_rowwise", "fp8_tensorwise", "fp8_rowwise")
    rank: ClassVar[int] = 20

    def multiple(self, recipe: Recipe, target: Target) -> int:
        return aten.PROVIDER.multiple(recipe, target)

    def reasons_against(self, site: Site, recipe: Recipe, target: Target) -> list[str]:
        """Those of aten's kernels, sizes that torchao does not pad, and processors on which `_int_mm` is inexact."""
        reasons = missing("torchao", "torchao")
        ones = [name for name in ("M", "N", "K") if getattr(site, name) == 1]
        if recipe.dtype == torch.int8 and ones:
            reasons.append(f"torchao does not pad {', '.join(ones)} = 1, which the CPU's _int_mm gets wrong")
        if recipe.dtype == torch.int8 and target.device == "cpu" and processor().int_mm_saturates:
            reasons.append("torchao's int8 product is PyTorch's _int_mm, which saturates in 16 bits without VNNI")
        return reasons + aten.PROVIDER.reasons_against(site, recipe, target)

    def same_as(self, target: Target) -> str:
        return aten.PROVIDER.name if target.device == "cpu" else ""

    def product(
        self, a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, out_dtype: torch.dtype
    ) -> Tensor:
        """int_scaled_matmul; for FP8 the product of torchao's float8 linear in inference."""
        assert a_scale is not None and b_scale is not None
        if a.dtype == torch.int8:
            from torchao.kernel.intmm import int_scaled_matmul

            return (int_scaled_matmul(a.contiguous(), b, a_scale.contiguous()) * b_scale).to(out_dtype)
        if aten.without_rows(a, a_scale):
            return aten.PROVIDER.product(a, a_scale, b, b_scale, out_dtype)
        from torchao.float8.inference import addmm_float8_unwrapped_inference

        if a_scale.dim() == 2:
            a_scale, b_scale = aten.unit_strides(a_scale, b_scale)
        written = aten.scaled_mm_writes(a, a_scale, out_dtype)
        columns = b.t().contiguous().t()
        return addmm_float8_unwrapped_inference(a.contiguous(), a_scale, columns, b_scale, written).to(out_dtype)


PROVIDER = Torchao()
