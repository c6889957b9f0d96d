"""fbgemm: FBGEMM's row-wise FP8 GEMM on CUDA (torch.ops.fbgemm.f8f8bf16_rowwise, of fbgemm_gpu's gen-AI kernels).

Its CPU build holds table lookups, no FP8 GEMM; fbgemm-gpu-cpu 1.9.0, the newest on the index, does not load with
torch 2.13 either (an undefined symbol in fbgemm_gpu_tbe_index_select.so).
"""

from __future__ import annotations

from loka_compile.dispatch.providers.installed import missing
from loka_compile.graph.site import Site
from loka_compile.recipes import Recipe
from loka_compile.target import Target

NAME = "fbgemm"
SPEAKS = ("fp8_rowwise",)


def multiple(recipe: Recipe, target: Target) -> int:
    return 16


def reasons_against(site: Site, recipe: Recipe, target: Target) -> list[str]:
    reasons = missing("fbgemm_gpu", "fbgemm")
    if target.device != "cuda":
        reasons.append("FBGEMM's FP8 kernels run on CUDA")
    if site.op in ("bmm", "baddbmm"):
        reasons.append("f8f8bf16_rowwise takes two matrices, this is a batch")
    return reasons
