"""onednn: the CPU's quantized linear, its weight packed once (torch.ops.onednn, seen with torch 2.13).

It takes unsigned activations. (Signed ones it takes too, some hundred times slower here.) It writes float32 with the
weight's scales applied, which spares small products the way over int32; the rows' scales fuse with what follows.
"""

from __future__ import annotations

import torch

from loka_compile.graph.site import Site
from loka_compile.processor import processor
from loka_compile.recipes import Recipe
from loka_compile.target import Target

NAME = "onednn"
SPEAKS = ("uint8_rowwise",)


def multiple(recipe: Recipe, target: Target) -> int:
    return 1


def reasons_against(site: Site, recipe: Recipe, target: Target) -> list[str]:
    reasons = []
    if target.device != "cpu":
        reasons.append("oneDNN runs on CPUs")
    elif not torch.backends.mkldnn.is_available():
        reasons.append("this PyTorch was built without oneDNN")
    elif processor().onednn_saturates:
        reasons.append("without VNNI oneDNN adds pairs of products in 16 bits, which saturate")
    if not site.static_rhs:
        reasons.append("its weight is packed once, and this one is not frozen")
    if site.op in ("bmm", "baddbmm"):
        reasons.append("it takes two matrices, this is a batch")
    return reasons
