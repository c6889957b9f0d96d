"""Targets: the hardware a plan is for, as plain numbers.

Peaks are dense vendor figures; `attained_flops` and `attained_bandwidth` are the shares a good kernel reaches
(78 % and 92 % on H100: torchao's roofline model, torchao/testing/training/roofline_utils.py). A GPU target's
times are therefore *modelled*; the `cpu` target has no peaks because its times are measured where it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch


@dataclass(frozen=True)
class Target:
    """One kind of hardware.

    peak: dense FLOP/s by operand dtype (float32 means TF32 on NVIDIA).
    bandwidth: bytes/s of device memory. memory: bytes of it. launch: seconds to start one kernel.
    alignment: operand dimensions of an 8-bit GEMM must be multiples of this.
    """

    name: str
    device: str
    peak: Mapping[torch.dtype, float] = field(default_factory=dict)
    bandwidth: float = 0.0
    launch: float = 2e-6
    alignment: int = 16
    attained_flops: float = 0.78
    attained_bandwidth: float = 0.92
    fp8_block: bool = False
    memory: float = float("inf")

    @property
    def measured(self) -> bool:
        """Times come from running kernels here rather than from a model."""
        return not self.peak

    def __str__(self) -> str:
        return self.name


def _gpu(name: str, tf32: float, bf16: float, fp8: float, bandwidth: float, memory: int, **more: bool) -> Target:
    """Peaks in TFLOP/s, bandwidth in TB/s, memory in GB as the vendors' sheets have it."""
    peak = {
        torch.float32: tf32,
        torch.bfloat16: bf16,
        torch.float16: bf16,
        torch.float8_e4m3fn: fp8,
        torch.float8_e5m2: fp8,
        torch.int8: fp8,
    }
    flops = MappingProxyType({dtype: tera * 1e12 for dtype, tera in peak.items()})
    return Target(name, "cuda", flops, bandwidth * 1e12, memory=memory * 1e9, **more)


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("cpu", "cpu", launch=0.0, alignment=1),
        _gpu("h100", 494, 989, 1979, 3.35, 80, fp8_block=True),
        _gpu("h200", 494, 989, 1979, 4.8, 141, fp8_block=True),
        _gpu("b200", 1125, 2250, 4500, 7.67, 180),
        _gpu("mi300x", 653, 1307, 2614, 5.3, 192),
        _gpu("mi350x", 1150, 2300, 4600, 8.0, 288),
    )
}
"""Every target loka knows, by name."""


def target_of(device: str) -> Target:
    """The measured target of this device type, with the limits of the device that is here."""
    return TARGETS["cpu"] if device == "cpu" else Target(device, device)
