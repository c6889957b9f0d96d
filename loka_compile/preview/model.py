"""The modelled time of a launch: the roofline of spec/roofline.py, with the target's stated shares of its peaks.

The kernels of a step follow one another. So the model sees passes over memory, launches and the width of operands, and
is blind to how good a kernel is inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from loka_compile.spec import roofline
from loka_compile.spec.target import TARGETS, Target

GRAPH_LAUNCH = 0.5e-6
"""Seconds a kernel adds when a CUDA graph starts it: 3.4 µs a kernel where it runs for 2.9 (NVIDIA, "Getting Started
with CUDA Graphs", 2019, measured there on a V100)."""


@dataclass(frozen=True)
class Rates:
    """The numbers a target's times are modelled with. flops, bandwidth: shares of the peaks that are attained.
    launch: seconds to start a kernel. origin: where the figures are from: vendor peaks, or the calibration file."""

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
    """The target's own shares of its peaks (spec/target.py)."""
    return Rates(target.name, target.attained_flops, target.attained_bandwidth, target.launch)


def kernel_us(flops: float, nbytes: float, dtype: str, rates: Rates, graphs: bool = False) -> tuple[float, str]:
    """Modelled microseconds of one launch, and what bounds it: compute, memory or launch."""
    hardware = rates.hardware
    peak = hardware.peak.get(getattr(torch, dtype, torch.bfloat16), hardware.peak[torch.bfloat16])
    start = rates.graph_launch if graphs else rates.launch
    attained = roofline.Rates(peak * rates.flops, hardware.bandwidth * rates.bandwidth, start)
    return attained.seconds(flops, nbytes) * 1e6, attained.bound(flops, nbytes)
