"""The roofline: how long a kernel takes at least, from its FLOPs and its bytes.

    seconds = max(FLOPs / peak, bytes / bandwidth) + launch

Every tensor goes once through device memory, and nothing stays in a cache. peak and bandwidth are what a good kernel
attains, not what the vendor states (torchao prints the same model beside its measurements,
torchao/testing/training/roofline_utils.py). This is the only place that has the formula; a target's own peak,
bandwidth and launch are in target.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy
import torch

from loka_compile.spec.target import Target


@dataclass(frozen=True)
class Rates:
    """A kernel's attained rates. flops: FLOP/s. bandwidth: bytes/s of device memory. launch: seconds to start it."""

    flops: float
    bandwidth: float
    launch: float

    def compute(self, flops: Any) -> Any:
        """Seconds that the arithmetic takes."""
        return flops / self.flops

    def memory(self, nbytes: Any) -> Any:
        """Seconds that the bytes take."""
        return nbytes / self.bandwidth

    def seconds(self, flops: Any, nbytes: Any, kernels: int = 1) -> Any:
        """Seconds of `kernels` launches that together do `flops` FLOPs and move `nbytes` bytes. Both are numbers, or
        sympy expressions in the batch's symbol."""
        return _larger(self.compute(flops), self.memory(nbytes)) + kernels * self.launch

    def bound(self, flops: float, nbytes: float) -> str:
        """The limit of one launch: `compute`, `memory` or `launch`."""
        compute, memory = self.compute(flops), self.memory(nbytes)
        return "launch" if max(compute, memory) < self.launch else "compute" if compute >= memory else "memory"


def rates_of(target: Target, dtype: torch.dtype) -> Rates:
    """The rates of a kernel on operands of this dtype on this target. Raises KeyError for a dtype without a peak."""
    bandwidth = target.bandwidth * target.attained_bandwidth
    return Rates(target.peak[dtype] * target.attained_flops, bandwidth, target.launch)


def _larger(a: Any, b: Any) -> Any:
    return sympy.Max(a, b) if isinstance(a, sympy.Expr) or isinstance(b, sympy.Expr) else max(a, b)
