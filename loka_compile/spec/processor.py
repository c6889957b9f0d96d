"""Processor: the instruction sets that decide which 8-bit and 16-bit kernels run on a CPU, are fast, and are exact.

Libraries choose their kernels by what the CPU has, within what an environment variable leaves them: ATen and Inductor
within ATEN_CPU_CAPABILITY, oneDNN within ONEDNN_MAX_CPU_ISA (DNNL_MAX_CPU_ISA, its older name). Seen with torch 2.13,
oneDNN 3.12.
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

X86 = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16")
ARM = ("neon", "dot", "i8mm", "bf16", "fp16_arith", "sve", "sve2", "sve_bf16")
KNOWN = (*X86, *ARM)
"""Names of instruction sets, those of torch.cpu.get_capabilities; avx512_f there is avx512f here and in
/proc/cpuinfo."""

IN_CPUINFO = {"asimd": "neon", "asimddp": "dot", "asimdhp": "fp16_arith", "svebf16": "sve_bf16"}
"""/proc/cpuinfo's names on Arm, where they are others."""

VNNI = frozenset(("avx512_vnni", "avx_vnni", "amx_int8"))
"""Any of them adds products of bytes in 32 bits. Without, x86 adds pairs of them in 16 bits and saturates: 255 x 127
twice is 32767 instead of 64770."""

_AVX512 = ("avx2", "avx512f")
_VNNI = (*_AVX512, "avx512_vnni")
ONEDNN_LEVELS: dict[str, tuple[str, ...]] = {
    "SSE41": (),
    "AVX": (),
    "AVX2": ("avx2",),
    "AVX2_VNNI": ("avx2", "avx_vnni"),
    "AVX2_VNNI_2": ("avx2", "avx_vnni"),
    "AVX512_CORE": _AVX512,
    "AVX512_CORE_VNNI": _VNNI,
    "AVX512_CORE_BF16": (*_VNNI, "avx512_bf16"),
    "AVX512_CORE_FP16": (*_VNNI, "avx512_bf16", "avx_vnni", "avx512_fp16"),
    "AVX10_1_512": (*_VNNI, "avx512_bf16", "avx_vnni", "avx512_fp16"),
}
"""The instruction sets that a value of ONEDNN_MAX_CPU_ISA leaves; any other value leaves all."""
ATEN_LEVELS: dict[str, tuple[str, ...]] = {"default": (), "avx2": ("avx2", "avx_vnni"), "sve256": ARM}


@dataclass(frozen=True)
class Processor:
    """A CPU as the kernels of one process meet it.

    has: of KNOWN, what the CPU has. aten, onednn: what is left of that to ATen with Inductor, and to oneDNN.
    """

    name: str
    architecture: str
    has: frozenset[str]
    aten: frozenset[str]
    onednn: frozenset[str]

    @property
    def onednn_saturates(self) -> bool:
        """oneDNN adds pairs of unsigned by signed bytes in 16 bits."""
        return self.architecture == "x86_64" and not self.onednn & VNNI

    @property
    def int_mm_saturates(self) -> bool:
        """PyTorch's `_int_mm` is such a product of oneDNN's. (Without AVX-512 it is a loop: exact, slow.)"""
        return self.onednn_saturates and "avx512f" in self.has

    @property
    def fast_int_mm(self) -> bool:
        """`_int_mm` is a product of oneDNN's, and no loop that takes a hundred times as long."""
        return self.architecture != "x86_64" or "avx512_vnni" in self.has or "amx_int8" in self.has

    @property
    def fast_16_bits(self) -> bool:
        """Products of bfloat16 may be oneDNN's, and are no loops that take ten times as long as float32's: its kernels
        want AVX-512, or conversions that no processor has without AVX-VNNI."""
        return self.architecture != "x86_64" or bool(self.onednn & {"avx512f", "avx_vnni"})

    def __str__(self) -> str:
        """`AMD EPYC avx2 avx512f (avx512_vnni: not for oneDNN)`: plans are pinned to it, times remembered by it."""
        both = [each for each in KNOWN if each in self.aten & self.onednn]
        for library, left in (("ATen", self.aten), ("oneDNN", self.onednn)):
            if hidden := [each for each in KNOWN if each in self.has - left]:
                both.append(f"({', '.join(hidden)}: not for {library})")
        return " ".join([self.name, *both])


@functools.cache  # asked at every product, and the libraries read the environment once, too
def processor() -> Processor:
    """This machine's, with the limits that the environment sets."""
    aten, onednn, dnnl = (os.environ.get(name, "") for name in _LIMITS)
    return limited(_capabilities(), aten, onednn or dnnl)


_LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


def limited(capabilities: Mapping[str, Any], aten: str = "", onednn: str = "") -> Processor:
    """A processor with these capabilities, under these values of the environment's variables."""
    has = frozenset(each for each in KNOWN if capabilities.get("avx512_f" if each == "avx512f" else each))
    name, architecture = str(capabilities["cpu_name"]), str(capabilities["architecture"])
    left = ATEN_LEVELS.get(aten.lower(), KNOWN), ONEDNN_LEVELS.get(onednn.upper(), KNOWN)
    return Processor(name, architecture, has, *(has.intersection(each) for each in left))


def _capabilities() -> dict[str, Any]:
    """torch.cpu's, or of a torch without them /proc/cpuinfo's."""
    ask = getattr(torch.cpu, "get_capabilities", None)
    told = dict(ask()) if ask is not None else {}
    lines = _cpuinfo()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    named = {"cpu_name": (names or [platform.processor() or platform.machine()])[0]}
    if "architecture" in told:
        return {**named, **told}
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    known = {IN_CPUINFO.get(flag, flag): True for flag in flags}
    return {**known, **named, "avx512_f": "avx512f" in flags, "architecture": platform.machine()}


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
