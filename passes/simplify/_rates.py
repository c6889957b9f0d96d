"""What the exact passes decide by: modelled seconds of a rewrite's parts, on the target in hand.

    one kernel takes max(FLOPs / peak, bytes / bandwidth) + launch

GPU targets bring their own numbers. A CPU's are of the order of two cores' worth: they only have to tell a rewrite
that clearly pays from one that may not, as the rewritten graph is raced against the original one where it runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from loka_compile.passes.base import Context
from loka_compile.spec.target import TARGETS


@dataclass(frozen=True)
class Rates:
    """flops: FLOP/s. bandwidth: bytes/s. launch: seconds a kernel costs before it does anything."""

    flops: float
    bandwidth: float
    launch: float

    def seconds(self, flops: float, nbytes: float, kernels: int = 1) -> float:
        return max(flops / self.flops, nbytes / self.bandwidth) + kernels * self.launch


CPU = Rates(flops=2.5e11, bandwidth=2e10, launch=3e-6)
ANY_GPU = "h100"
"""Whose numbers stand for a GPU that is at hand under the target `cpu`."""


def on_gpu(context: Context) -> bool:
    return context.device == "cuda" or TARGETS[context.plan.target].device == "cuda"


def rates(context: Context, dtype: torch.dtype) -> Rates:
    if not on_gpu(context):
        return CPU
    target = TARGETS[context.plan.target]
    target = TARGETS[ANY_GPU] if target.measured else target
    peak = target.peak.get(dtype, target.peak[torch.float32] / 2)
    return Rates(peak * target.attained_flops, target.bandwidth * target.attained_bandwidth, target.launch)
