"""The machine code of a Triton kernel's launch, for a GPU that is not here.

`read(launch, "sm_90")` compiles the kernel exactly as launching it would (the same specialisation on multiples of 16
and on 1, all pointers aligned) and reads the machine code: registers, spills, shared memory, tensor-core instructions,
widths of global accesses, and how many instructions it issues for its work. Nothing runs and nothing here is a time.
Not in a process with TRITON_INTERPRET=1, in which triton has no compiler.
"""

from __future__ import annotations

import inspect
import math
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loka_compile.kernels.launch import Launch
from loka_compile.machine import gcn, sass, ttir
from loka_compile.machine.instructions import Code
from loka_compile.spec.chips import CHIPS, ISSUE, Chip

FP8 = ("E4M3", "E5M2", "QGMMA", "QMMA", "fp8", "bf8", "f8f6f4")
"""The name of an FP8 tensor-core instruction holds one of these."""


class CompileError(Exception):
    """The kernel does not compile for this chip; says why."""


@dataclass(frozen=True, eq=False)
class MachineCode:
    """registers: of a thread. stack, spills: bytes of it, and instructions that save or restore registers there (AMD:
    spilled registers). shared: bytes of shared memory. occupancy: programs an SM holds at once, and limited_by what.
    mma: tensor-core instructions by name; multiplies_fp8: whether the source multiplies FP8. loads, stores: global
    accesses by bits for each thread ("tma": bulk copies). instructions: of the whole kernel; loop: of one trip of its
    main loop (0: none), with loop_mma tensor-core instructions; tile: of one output tile, start to end; tile_flops: its
    tensor-core operations. bytes: global memory the launch must move, by program. executed: instructions a program
    issues if it has no tensor-core work, by warp.
    Where trips are unknown or warps have roles of their own, or there is no such work, the figure is None.
    """

    kernel: str
    arch: str
    warps: int
    stages: int
    registers: int
    stack: int
    spills: int
    shared: int
    tensor_memory: int
    occupancy: int
    limited_by: str
    mma: Mapping[str, int]
    mma_bits: int
    multiplies_fp8: bool
    loads: Mapping[str, int]
    stores: Mapping[str, int]
    instructions: int
    loop: int
    loop_mma: Mapping[str, int]
    tile: int | None
    tile_flops: int | None
    executed: float | None
    bytes: float

    @property
    def chip(self) -> Chip:
        return CHIPS[self.arch]

    @property
    def fits(self) -> bool:
        """A program's shared memory is within what the chip gives one."""
        return self.shared <= self.chip.shared_limit

    @property
    def wide_loads(self) -> float | None:
        return wide_share(self.loads)

    @property
    def wide_stores(self) -> float | None:
        return wide_share(self.stores)

    @property
    def fp8(self) -> bool:
        """FP8 products in the main loop (in the kernel, where it is unrolled to the end)."""
        return any(any(word in name for word in FP8) for name in (self.loop_mma or self.mma))

    @property
    def loop_per_mma(self) -> float | None:
        """Instructions of the main loop for each tensor-core instruction in it."""
        return self.loop / sum(self.loop_mma.values()) if self.loop_mma else None

    @property
    def flops_per_instruction(self) -> float | None:
        """Tensor-core operations by issued warp instruction, over one whole output tile."""
        return self.tile_flops / (self.tile * self.warps) if self.tile and self.tile_flops else None

    @property
    def bytes_per_instruction(self) -> float | None:
        """Bytes the launch must move by issued warp instruction, for kernels without tensor-core work."""
        return self.bytes / (self.executed * self.warps) if self.executed and self.bytes and not self.mma else None

    @property
    def headroom(self) -> float | None:
        """Clocks the tensor cores (or memory) need, over those it takes to issue the instructions at full rate. Below 1
        the instructions are what limits the kernel; as real code issues at half the rate or so, 2 is a warning."""
        if self.flops_per_instruction and self.chip.flops.get(self.mma_bits):
            return self.flops_per_instruction / self.chip.flops[self.mma_bits] * ISSUE
        if self.bytes_per_instruction and self.chip.bytes:
            return self.bytes_per_instruction / self.chip.bytes * ISSUE
        return None


def wide_share(widths: Mapping[str, int]) -> float | None:
    """Share of the bytes that are accessed in 128 bits or more a thread. It is 1 with TMA, which moves the big
    operands: the plain accesses beside it are vectors such as scales. None where nothing is accessed."""
    if "tma" in widths:
        return 1.0
    total = sum(int(width) * count for width, count in widths.items())
    return sum(int(w) * count for w, count in widths.items() if int(w) >= 128) / total if total else None


def read(launch: Launch, arch: str) -> MachineCode:
    """Compile and count. Raises CompileError where Triton, LLVM or ptxas refuses."""
    chip, compiled = CHIPS[arch], compile_for(launch, arch)
    asm, metadata = compiled.asm, compiled.metadata
    if chip.amd:
        code, used = gcn.parse(asm["amdgcn"], metadata.name), gcn.resources(asm["amdgcn"])
        warps, registers = metadata.num_warps, used["vgpr_count"]
        stack, spills = used["private_segment_fixed_size"], used["vgpr_spill_count"]
        shared = max(metadata.shared, used["group_segment_fixed_size"])
    else:
        text, used = _disassemble(asm["cubin"], metadata.name)
        code = sass.parse(text, metadata.name, asm["ptx"])
        warps = (sass.threads(asm["ptx"]) or 32 * metadata.num_warps) // 32
        registers, stack, shared = used["REG"], used["STACK"] + used["LOCAL"], metadata.shared
        spills = sum(each.local for each in code.instructions)
    tensor_memory = getattr(metadata, "tmem_size", 0) or 0
    occupancy, limited_by = _occupancy(chip, registers, warps, shared, tensor_memory)
    programs = max(1, math.prod(launch.grid))
    work = ttir.work(asm["ttir"], launch.args, programs)
    loop = code.main_loop or frozenset()
    specialized = warps != launch.warps  # each role runs code of its own
    tile, tile_flops = (None, None) if specialized else _tile(code, work, warps)
    bits = {each.mma: each.bits for each in code.instructions if each.mma}
    return MachineCode(
        kernel=metadata.name,
        arch=arch,
        warps=warps,
        stages=metadata.num_stages,
        registers=registers,
        stack=stack,
        spills=spills,
        shared=shared,
        tensor_memory=tensor_memory,
        occupancy=occupancy,
        limited_by=limited_by,
        mma=dict(code.mma),
        mma_bits=bits[max(code.mma, key=code.mma.__getitem__)] if bits else 0,
        multiplies_fp8=any(name.startswith("f8") for name in work.types),
        loads=dict(code.widths("load")),
        stores=dict(code.widths("store")),
        instructions=len(code.instructions),
        loop=len(loop),
        loop_mma=dict(code.count_mma(loop)),
        tile=tile,
        tile_flops=tile_flops,
        executed=None if specialized else _executed(code, work.access_trips),
        bytes=launch.nbytes / programs,
    )


def _tile(code: Code, work: ttir.Work, warps: int) -> tuple[int | None, int | None]:
    """Instructions and operations of one output tile.

    Triton peels trips off the main loop and LLVM unrolls it, so its trips are counted by the work that is left for it
    when everything outside has run once. Of a loop that is flat, what a trip may leave out runs once a tile.
    """
    flops, loop = work.tile_flops, code.main_loop
    if not code.mma or not flops:
        return None, None
    if loop is None:
        return len(code.instructions), flops
    each = [x.flops * (1 if x.once else warps) for x in code.instructions]
    inside = sum(each[i] for i in loop)
    if not inside:
        return None, None
    trips = max(1, round((flops - (sum(each) - inside)) / inside))
    repeated = len(code.every_trip(loop) if work.flat else loop)
    return len(code.instructions) + (trips - 1) * repeated, flops


def _executed(code: Code, trips: list[float] | None) -> float | None:
    """Instructions a warp issues, every branch taken once: those of a loop as often as the loop of the source runs.
    The outermost of nested loops are matched; loops that are missing inside were unrolled."""
    if trips is None:
        return None
    nest = code.nest(code.main_loop) if code.main_loop else []
    total, times = float(len(code.instructions)), 1.0
    for loop, runs in zip(nest, trips, strict=False):
        total += len(loop) * times * (runs - 1)
        times *= runs
    return total


def _occupancy(chip: Chip, registers: int, warps: int, shared: int, tensor_memory: int) -> tuple[int, str]:
    limits = {
        "registers": chip.programs_by_registers(registers, warps),
        "warps": chip.warps // warps,
        "programs": chip.programs,
    }
    if shared + chip.reserved:
        limits["shared memory"] = chip.shared // (shared + chip.reserved)
    if tensor_memory:
        limits["tensor memory"] = 512 // tensor_memory
    least = min(limits, key=limits.__getitem__)
    return limits[least], least


# ---------------------------------------------------------------- triton, 3.7.1; the private names are all here


def compile_for(launch: Launch, arch: str) -> Any:
    """The triton CompiledKernel that this launch would make and run on `arch`."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend  # make_backend: the compiler of a GPUTarget
    from triton.runtime.jit import create_function_from_signature  # arguments -> their types and specialisation

    kernel = launch.kernel
    if not hasattr(kernel, "_pack_args"):  # InterpretedFunction has none
        raise RuntimeError("TRITON_INTERPRET is set: in this process triton interprets kernels and compiles none")
    target = GPUTarget("hip", arch, 64) if CHIPS[arch].amd else GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    backend = make_backend(target)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    try:
        bound, specialization, keywords = bind(**launch.args, **launch.constants, **options)
        # JITFunction._pack_args: what JITFunction.run makes of bound arguments before it compiles
        parsed, signature, constants, attributes = kernel._pack_args(backend, options, bound, specialization, keywords)
        source = ASTSource(kernel, signature, constants, attributes)
        return triton.compile(source, target=target, options=vars(parsed))
    except Exception as error:
        raise CompileError(f"{kernel.__name__} for {arch}: {type(error).__name__}: {error}") from error


def _disassemble(cubin: bytes, kernel: str) -> tuple[str, dict[str, int]]:
    """With the tools that ship in triton's wheel (triton/backends/nvidia/bin)."""
    import triton

    tools = Path(inspect.getfile(triton)).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text, table = (
            subprocess.run([tools / tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for tool, option in (("nvdisasm", "-c"), ("cuobjdump", "-res-usage"))
        )
    return text, sass.resources(table, kernel)
