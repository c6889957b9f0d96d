"""deep_gemm: block-scaled FP8 on Hopper (deep_gemm.fp8_gemm_nt). It leaves casting to its caller, which is loka."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from loka_compile.kernels.providers.base import Provider, is_batch, missing
from loka_compile.spec.recipes import BLOCK, Recipe
from loka_compile.spec.site import Site
from loka_compile.spec.target import Target


class DeepGemm(Provider):
    name: ClassVar[str] = "deep_gemm"
    speaks: ClassVar[tuple[str, ...]] = ("fp8_blockwise",)
    rank: ClassVar[int] = 40

    def multiple(self, recipe: Recipe, target: Target) -> int:
        return BLOCK

    def reasons_against(self, site: Site, recipe: Recipe, target: Target) -> list[str]:
        reasons = missing("deep_gemm")
        if not target.fp8_block:
            reasons.append(f"DeepGEMM with float32 block scales runs on Hopper, {target} is none")
        if is_batch(site):
            reasons.append("fp8_gemm_nt takes two matrices, this is a batch")
        return reasons

    def product(
        self, a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, out_dtype: torch.dtype
    ) -> Tensor:
        """The kernel writes bfloat16, which is cast to out_dtype."""
        import deep_gemm as library

        assert a_scale is not None and b_scale is not None
        out = a.new_empty((a.shape[0], b.shape[1]), dtype=torch.bfloat16)
        library.fp8_gemm_nt((a.contiguous(), a_scale), (b.t().contiguous(), b_scale.t().contiguous()), out)
        return out.to(out_dtype)


PROVIDER = DeepGemm()
