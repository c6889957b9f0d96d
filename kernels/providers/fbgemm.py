"""fbgemm: FBGEMM's row-wise FP8 GEMM on CUDA (torch.ops.fbgemm.f8f8bf16_rowwise, of fbgemm_gpu's gen-AI kernels).

Its CPU build has table lookups but no FP8 GEMM, and fbgemm-gpu-cpu 1.9.0, the newest on the index, does not load with
torch 2.13 (an undefined symbol in fbgemm_gpu_tbe_index_select.so). FBGEMM's 8-bit products on CPUs are part of PyTorch
(quantized::linear_dynamic). They quantize their left operand themselves, with one scale a tensor, and without VNNI they
saturate as oneDNN's do. oneDNN's take our rows' scales and are faster.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from loka_compile.kernels.providers.base import Provider, is_batch, missing
from loka_compile.spec.recipes import Recipe
from loka_compile.spec.site import Site
from loka_compile.spec.target import Target


class Fbgemm(Provider):
    name: ClassVar[str] = "fbgemm"
    speaks: ClassVar[tuple[str, ...]] = ("fp8_rowwise",)
    rank: ClassVar[int] = 30

    def multiple(self, recipe: Recipe, target: Target) -> int:
        return 16

    def reasons_against(self, site: Site, recipe: Recipe, target: Target) -> list[str]:
        reasons = missing("fbgemm_gpu", "fbgemm")
        if target.device != "cuda":
            reasons.append("FBGEMM's FP8 kernels run on CUDA")
        if is_batch(site):
            reasons.append("f8f8bf16_rowwise takes two matrices, this is a batch")
        return reasons

    def product(
        self, a: Tensor, a_scale: Tensor | None, b: Tensor, b_scale: Tensor | None, out_dtype: torch.dtype
    ) -> Tensor:
        """The kernel writes bfloat16, which is cast to out_dtype."""
        import fbgemm_gpu.experimental.gen_ai  # noqa: F401  # registers the operator

        assert a_scale is not None and b_scale is not None
        rows, columns = a.contiguous(), b.t().contiguous()
        scales = a_scale.reshape(-1).contiguous(), b_scale.reshape(-1).contiguous()
        return torch.ops.fbgemm.f8f8bf16_rowwise(rows, columns, *scales).to(out_dtype)


PROVIDER = Fbgemm()
