"""Modelled seconds by which the exact passes decide whether a rewrite pays (spec/roofline.py).

GPU targets bring their own rates. A CPU's rates are rough, those of about two cores. They only have to tell a rewrite
that clearly pays from one that may not, because the rewritten graph is raced against the original where it runs.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from loka_compile.passes.base import Context
from loka_compile.spec.chips import CHIPS
from loka_compile.spec.roofline import Rates, rates_of
from loka_compile.spec.target import TARGETS

CPU = Rates(flops=2.5e11, bandwidth=2e10, launch=3e-6)
TILE, SMS = 128, CHIPS["sm_90"].sms
ANY_GPU = "h100"
"""The target whose rates stand for a GPU that is present under the target `cpu`."""


def on_gpu(context: Context) -> bool:
    """Whether the graph runs on a GPU, present or modelled."""
    return context.device == "cuda" or TARGETS[context.plan.target].device == "cuda"


def rates(context: Context, dtype: torch.dtype) -> Rates:
    """The target's FLOP/s, bytes/s and seconds a launch for this dtype. A dtype the target does not list runs at half
    of float32's FLOP/s."""
    if not on_gpu(context):
        return CPU
    target = TARGETS[context.plan.target]
    target = TARGETS[ANY_GPU] if target.measured else target
    if dtype in target.peak:
        return rates_of(target, dtype)
    wide = rates_of(target, torch.float32)
    return replace(wide, flops=wide.flops / 2)


def gemm_seconds(r: Rates, rows: int, depth: int, width: int, dtype: torch.dtype, batch: int = 1) -> float:
    """Modelled seconds of (rows, depth) @ (depth, width), or of `batch` such products in one kernel: max(FLOPs / peak,
    bytes / bandwidth) + launch. FLOPs are rounded up to whole waves of TILE x TILE outputs over SMS multiprocessors."""
    tiles = batch * math.ceil(rows / TILE) * math.ceil(width / TILE)
    waves = math.ceil(tiles / SMS)
    flops = 2 * depth * waves * SMS * TILE * TILE
    return r.seconds(flops, batch * dtype.itemsize * (rows * depth + depth * width + rows * width))
