"""The GPU that a preview pretends to have: what it answers, and whom it tells what is launched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from loka_compile.spec.chips import CHIPS, Chip
from loka_compile.spec.target import TARGETS, Target

ARCHS = {chip.target: chip.arch for chip in CHIPS.values() if chip.target} | {"h200": "sm_90"}
"""The GPU that code is compiled for, by target."""


@dataclass(frozen=True)
class Gpu:
    """What the patches of torch_patches.py tell whoever asks, and whom they tell what is launched."""

    target: Target
    on_inductor_kernel: Callable[..., Any]
    on_triton_kernel: Callable[..., Any]
    on_wrapper: Callable[..., Any]

    @property
    def name(self) -> str:
        return self.target.name

    @property
    def arch(self) -> str:
        return ARCHS[self.target.name]

    @property
    def chip(self) -> Chip:
        return CHIPS[self.arch]

    @property
    def amd(self) -> bool:
        return self.chip.amd

    @property
    def capability(self) -> tuple[int, int]:
        """The result of torch.cuda.get_device_capability. For an AMD GPU these are the first two digits of gfx942,
        gfx950."""
        digits = self.arch.removeprefix("sm_").removeprefix("gfx")
        return (int(digits[0]), int(digits[1])) if self.amd else (int(digits[:-1]), int(digits[-1]))

    @property
    def major(self) -> int:
        return self.capability[0]

    @property
    def minor(self) -> int:
        return self.capability[1]

    @property
    def properties(self) -> Any:
        """The result of torch.cuda.get_device_properties."""
        return SimpleNamespace(
            name=self.name,
            major=self.major,
            minor=self.minor,
            multi_processor_count=self.chip.sms,
            total_memory=int(self.target.memory),
            warp_size=self.chip.lanes,
            regs_per_multiprocessor=65536,
            max_threads_per_multi_processor=self.chip.warps * self.chip.lanes,
            max_threads_per_block=1024,
            shared_memory_per_block=49152,
            shared_memory_per_block_optin=self.chip.shared_limit,
            shared_memory_per_multiprocessor=self.chip.shared,
            gcnArchName=self.arch if self.amd else "",
            L2_cache_size=50 << 20,
        )


def gpu_target(name: str) -> Target:
    """Raises ValueError for what is no GPU that code can be generated for."""
    if name not in ARCHS:
        raise ValueError(f"target: expected one of {', '.join(ARCHS)}, got {name!r}")
    return TARGETS[name]
