"""GPUs as what compiled code runs on: the limits that decide occupancy, and the rates that decide what holds it back.

Limits per SM (on AMD: compute unit) are the vendors': CUDA C++ Programming Guide, table of compute capabilities; CDNA 3
and CDNA 4 ISA guides. Rates are theirs too, dense, by operand width; memory's is bandwidth / clock / SMs.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loka_compile.spec.target import TARGETS, Target

ISSUE = 4
"""Instructions an SM issues in a clock: one for each of its four partitions. (AMD: of its four SIMDs.)"""


@dataclass(frozen=True)
class Chip:
    """arch: Triton's name, sm_90 or gfx942. lanes: threads of a warp. warps, programs: most of an SM. shared: bytes of
    shared memory of an SM; shared_limit: that one program may have; reserved: taken for each program besides. flops: of
    the tensor cores by operand bits, a clock and SM. bytes: of device memory, a clock and SM; 0 where none is stated.
    target: the name loka_compile.spec.target has for it, or "".
    """

    arch: str
    lanes: int
    warps: int
    programs: int
    shared: int
    shared_limit: int
    reserved: int
    sms: int
    flops: Mapping[int, int] = field(default_factory=dict)
    bytes: float = 0.0
    target: str = ""

    @property
    def amd(self) -> bool:
        return self.arch.startswith("gfx")

    @property
    def model(self) -> Target | None:
        """Peaks and bandwidth for a roofline; None where loka has none for this chip."""
        return TARGETS.get(self.target)

    def programs_by_registers(self, registers: int, warps: int) -> int:
        """How many programs of `warps` warps fit in the registers of an SM.

        NVIDIA: four files of 16384, given out to warps by 256. AMD: each SIMD has 512 a lane, given out by 8 (the
        accumulation registers are among them), for at most 8 waves.
        """
        if self.amd:
            return min(8, 512 // _up(max(registers, 1), 8)) * 4 // warps
        return 16384 // _up(max(registers, 1) * self.lanes, 256) * 4 // warps


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _nvidia(arch: str, warps: int, programs: int, shared_kib: int, sms: int, flops16: int, **more: Any) -> Chip:
    """FP8 at twice the rate of 16 bits, TF32 at half. One KiB of shared memory is the system's, by program."""
    shared, reserved = shared_kib * 1024, 1024
    rates = {8: 2 * flops16, 16: flops16, 32: flops16 // 2}
    return Chip(arch, 32, warps, programs, shared, shared - reserved, reserved, sms, rates, **more)


def _amd(arch: str, lds_kib: int, sms: int, flops16: int, **more: Any) -> Chip:
    rates = {8: 2 * flops16, 16: flops16, 32: 256}
    return Chip(arch, 64, 32, 32, lds_kib * 1024, lds_kib * 1024, 0, sms, rates, **more)


CHIPS: dict[str, Chip] = {
    chip.arch: chip
    for chip in (
        _nvidia("sm_89", warps=48, programs=24, shared_kib=100, sms=142, flops16=1024),
        _nvidia("sm_90", warps=64, programs=32, shared_kib=228, sms=132, flops16=4096, bytes=14.5, target="h100"),
        _nvidia("sm_100", warps=64, programs=32, shared_kib=228, sms=148, flops16=8192, bytes=28.0, target="b200"),
        _nvidia("sm_120", warps=48, programs=24, shared_kib=100, sms=188, flops16=1024),
        _amd("gfx942", lds_kib=64, sms=304, flops16=2048, bytes=8.3, target="mi300x"),
        _amd("gfx950", lds_kib=160, sms=256, flops16=4096, bytes=13.0, target="mi350x"),
    )
}
"""Every chip kernels are compiled for, by arch: L40S, H100, B200, RTX 5090, MI300X, MI350X."""


def arch_of(*names: str) -> list[str]:
    """The archs of chips by their arch or by loka's name of the target; of all chips where none is named.

    Raises ValueError for a name that is neither, with the nearest one.
    """
    known = {chip.target: arch for arch, chip in CHIPS.items() if chip.target} | {arch: arch for arch in CHIPS}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"target: expected one of {', '.join(known)}, got {name!r}{hint}")
    return list(dict.fromkeys(known[name] for name in names or CHIPS))
