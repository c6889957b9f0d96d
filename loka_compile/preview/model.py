"""What a launch would take: the roofline of dispatch/roofline.py, with the target's stated shares of its peaks.

A kernel takes max(FLOPs / attained peak, bytes / attained bandwidth) + what starting it costs; the kernels of a step
follow one another. Tensors come from device memory once for each kernel, none stays in a cache. So the model sees
passes over memory, launches and the width of operands, and is blind to how good a kernel is inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from loka_compile.spec.target import TARGETS, Target

GRAPH_LAUNCH = 0.5e-6
"""Seconds a kernel adds when a CUDA graph starts it: 3.4 µs a kernel where it runs for 2.9 (NVIDIA, "Getting Started
with CUDA Graphs", 2019, measured there on a V100)."""


@dataclass(frozen=True)
class Rates:
    """What a target's times are modelled with. flops, bandwidth: shares of the peaks that are attained. launch: seconds
    to start a kernel. origin: where the figures are from: vendor peaks, or the calibration file."""

    target: str
    flops: float
    bandwidth: float
    launch: float
    graph_launch: float = GRAPH_LAUNCH
    origin: str = "torchao's shares of vendor peaks"

    @property
    def hardware(self) -> Target:
        return TARGETS[self.target]

    def __str__(self) -> str:
        return (
            f"{self.flops:.0%} of peak FLOP/s, {self.bandwidth:.0%} of {self.hardware.bandwidth / 1e12:.2f} TB/s, "
            f"{self.launch * 1e6:.1f} µs a launch ({self.graph_launch * 1e6:.1f} in a CUDA graph); {self.origin}"
        )


def rates_of(target: Target) -> Rates:
    """As everywhere else in loka (target.py)."""
    return Rates(target.name, target.attained_flops, target.attained_bandwidth, target.launch)


def kernel_us(flops: float, nbytes: float, dtype: str, rates: Rates, graphs: bool = False) -> tuple[float, str]:
    """Modelled microseconds of one launch, and what bounds it: compute, memory or launch."""
    hardware = rates.hardware
    peak = hardware.peak.get(getattr(torch, dtype, None), hardware.peak[torch.bfloat16])  # type: ignore[arg-type]
    compute = flops / (peak * rates.flops) * 1e6
    memory = nbytes / (hardware.bandwidth * rates.bandwidth) * 1e6
    start = (rates.graph_launch if graphs else rates.launch) * 1e6
    busy = max(compute, memory)
    return busy + start, "launch" if busy < start else "compute" if compute >= memory else "memory"
