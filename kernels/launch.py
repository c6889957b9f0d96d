"""One launch of a Triton kernel as plain data: the same object is run on a GPU, and compiled and counted without one.

Every Triton kernel has a function that turns operands into a `Launch`. The operands may be on the `meta` device, which
has shapes and dtypes but no memory. Under TRITON_INTERPRET=1 a launch runs on CPU tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True, eq=False)
class Launch:
    """kernel: the @triton.jit function.
    grid: number of programs along up to three axes.
    args: run-time arguments by name (tensors, TMA descriptors, numbers, None).
    constants: constexpr arguments by name.
    warps, stages: Triton's num_warps and num_stages.
    flops: tensor-core operations.
    nbytes: bytes of global memory it must move, each operand once.
    """

    kernel: Any
    grid: tuple[int, ...]
    args: Mapping[str, Any]
    constants: Mapping[str, Any] = field(default_factory=dict)
    warps: int = 4
    stages: int = 3
    flops: int = 0
    nbytes: int = 0

    def run(self) -> None:
        """Launch the kernel; an empty grid launches nothing."""
        if all(self.grid):
            options = {"num_warps": self.warps, "num_stages": self.stages}
            self.kernel[self.grid](**self.args, **self.constants, **options)


@dataclass(frozen=True, eq=False)
class Specimen:
    """A launch that is compiled without its GPU. A kernel's module lists its own in specimens(arch: str) ->
    list[Specimen], at the default configuration and the field's shapes; arch is "sm_90", "gfx942" and so on.

    name: such as "scaled_gemm rowwise 65536x512x512".
    launch: its tensors are on the meta device.
    unfused: (name, flops, bytes) of each kernel it replaces; () for none.

    needs: what a test must find in the machine code. "mma" is a tensor-core instruction in the main loop, "fp8_mma" one
    for FP8. "wide_loads" and "wide_stores" mean that at least three quarters of the bytes move in 128 bits a thread or
    by TMA. Stores of 16 bits are always refused if all operands' rows are multiples of 16 bytes.
    """

    name: str
    launch: Launch
    unfused: tuple[tuple[str, int, int], ...] = ()
    needs: tuple[str, ...] = ()


def moved(*tensors: Any) -> int:
    """Bytes of these tensors; None counts 0."""
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)


def arch_of(x: torch.Tensor) -> str:
    """The architecture Triton compiles for on this tensor's GPU: "sm_90", "gfx942", ..."""
    properties = torch.cuda.get_device_properties(x.device)
    return properties.gcnArchName.partition(":")[0] if torch.version.hip else f"sm_{properties.major}{properties.minor}"
