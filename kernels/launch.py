"""One launch of a Triton kernel as plain data: what is run on a GPU is what is compiled and counted without one.

Every Triton kernel here has a function that turns its operands into a `Launch`; they may be on the `meta` device, which
has shapes, dtypes and no memory. `run` makes the launch (under TRITON_INTERPRET=1, on CPU tensors).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True, eq=False)
class Launch:
    """kernel: the @triton.jit function. grid: programs, up to three numbers. args: its run-time arguments by name
    (tensors, TMA descriptors, numbers, None). constants: its constexprs by name. warps, stages: Triton's num_warps and
    num_stages. flops: tensor-core operations of the launch. nbytes: global memory it has to move, operands once each.
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
        """Nothing is launched where the grid is empty."""
        if all(self.grid):
            options = {"num_warps": self.warps, "num_stages": self.stages}
            self.kernel[self.grid](**self.args, **self.constants, **options)


@dataclass(frozen=True, eq=False)
class Specimen:
    """A launch to compile without its GPU. A kernel's module lists its own: specimens(arch: str) -> list[Specimen], at
    the default configuration and the field's shapes; arch is "sm_90", "gfx942" and so on.

    name: such as "scaled_gemm rowwise 65536x512x512". launch: its args on the meta device. unfused: (name, flops,
    bytes) of every kernel of the sequence it replaces, empty where there is none. needs: what a test must find in the
    machine code: "mma" a tensor-core instruction in the main loop, "fp8_mma" one for FP8, "wide_loads" and
    "wide_stores" at least three quarters of the bytes in 128 bits a thread or by TMA. Where all operands' rows are
    multiples of 16 bytes, stores of 16 bits are refused without being asked.
    """

    name: str
    launch: Launch
    unfused: tuple[tuple[str, int, int], ...] = ()
    needs: tuple[str, ...] = ()


def moved(*tensors: Any) -> int:
    """Bytes of these tensors, None left out."""
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)


def arch_of(x: torch.Tensor) -> str:
    """What Triton compiles for on this tensor's GPU."""
    properties = torch.cuda.get_device_properties(x.device)
    return properties.gcnArchName.partition(":")[0] if torch.version.hip else f"sm_{properties.major}{properties.minor}"
