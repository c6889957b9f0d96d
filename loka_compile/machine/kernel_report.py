"""`loka kernels`: what every kernel compiles to for each chip, what is wrong with it, and what it would cost.

Kernels are compiled in processes of their own, without TRITON_INTERPRET. The roofline is a model, the one of dispatch:
a kernel takes max(FLOPs / attained peak, bytes / attained bandwidth) + launch. The sequence that a fused kernel
replaces is modelled with the same peak.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import repeat
from typing import Any

import torch

from loka_compile.kernels.launch import Launch, Specimen
from loka_compile.machine.kernel_list import specimens
from loka_compile.machine.machine_code import CompileError, MachineCode, read
from loka_compile.spec.chips import CHIPS, Chip
from loka_compile.spec.roofline import rates_of

WIDE = 0.75  # of the bytes, where a kernel promises wide accesses: scales and statistics beside a row are narrow
PEAK = {0: torch.bfloat16, 8: torch.float8_e4m3fn, 16: torch.bfloat16, 32: torch.float32}
FIGURES = ("wide_loads", "wide_stores", "loop_per_mma", "flops_per_instruction", "bytes_per_instruction", "headroom")


@dataclass(frozen=True)
class Modelled:
    """Sums over the launches of one way to do it. us: modelled, None where loka has no figures for the chip."""

    launches: int
    flops: int
    bytes: int
    us: float | None


@dataclass(frozen=True, eq=False)
class Row:
    """One specimen on one chip. code is None where it does not compile. unfused: the sequence it replaces, if any."""

    module: str
    name: str
    arch: str
    code: MachineCode | None
    faults: tuple[str, ...]
    fused: Modelled
    unfused: Modelled | None

    def to_json(self) -> dict[str, Any]:
        body = asdict(self)
        if self.code:
            body["code"] |= {name: getattr(self.code, name) for name in FIGURES}
        return body


def survey(archs: Sequence[str], name: str = "", module: str = "", jobs: int = 1) -> list[Row]:
    """Compile what `name` selects of loka's kernels, or of another module's, for every chip; `jobs` chips at a time."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(archs)), mp_context=spawn, initializer=_compile_here) as pool:
        return [row for rows in pool.map(_rows, archs, repeat(name), repeat(module)) for row in rows]


def _compile_here() -> None:
    """Before triton is imported in this process."""
    os.environ.pop("TRITON_INTERPRET", None)


def _rows(arch: str, name: str, module: str) -> list[Row]:
    return [row(found, specimen, arch) for found, specimen in specimens(arch, name, module)]


def row(module: str, specimen: Specimen, arch: str) -> Row:
    launch, chip = specimen.launch, CHIPS[arch]
    try:
        code = read(launch, arch)
        found = faults(code, specimen.needs, aligned(launch))
    except CompileError as error:
        code, found = None, (f"does not compile: {' '.join(str(error).split())[:400]}",)
    bits = code.mma_bits if code else 0
    fused = modelled(chip, bits, [(launch.flops, launch.nbytes)])
    unfused = modelled(chip, bits, [costs for _, *costs in specimen.unfused]) if specimen.unfused else None
    return Row(module, specimen.name, arch, code, found, fused, unfused)


def faults(code: MachineCode, needs: Iterable[str], aligned: bool) -> tuple[str, ...]:
    """Faults that a default configuration must not have. aligned: whether the operands allow wide accesses."""
    narrow = sum(code.stores.get(width, 0) for width in ("8", "16"))
    share = {"wide_loads": code.wide_loads, "wide_stores": code.wide_stores}
    checks = {
        f"spills: {code.stack} bytes of stack, {code.spills} instructions": code.stack or code.spills,
        f"{code.shared} bytes of shared memory, {code.arch} gives {code.chip.shared_limit}": not code.fits,
        f"no SM can hold it, for its {code.limited_by}": code.fits and not code.occupancy,
        f"{narrow} stores of 16 bits or less": aligned and narrow,
        f"FP8 products, yet none on the tensor cores: {', '.join(code.mma) or 'nothing'}": code.multiplies_fp8
        and not code.fp8,
    }
    for need in needs:
        if need == "mma":
            checks["no tensor-core instruction in the main loop"] = not (code.loop_mma if code.loop else code.mma)
        elif need == "fp8_mma":
            checks["no FP8 tensor-core instruction in the main loop"] = not code.fp8
        elif need in share:
            wide = share[need] or 0.0
            checks[f"{need}: {wide:.0%} of the bytes in 128 bits or more"] = wide < WIDE
        else:
            raise ValueError(f"needs: expected mma, fp8_mma, wide_loads or wide_stores, got {need!r}")
    return tuple(says for says, wrong in checks.items() if wrong)


def aligned(launch: Launch) -> bool:
    """Whether the rows of all operands are multiples of 16 bytes; vectors beside matrices and columns do not count."""
    bases = [getattr(value, "base", value) for value in launch.args.values()]  # a TMA descriptor has its tensor
    tensors = [each for each in bases if isinstance(each, torch.Tensor) and each.dim() and each.shape[-1] > 1]
    matrices = [each for each in tensors if each.dim() > 1]
    return all(each.shape[-1] * each.element_size() % 16 == 0 for each in matrices or tensors)


def modelled(chip: Chip, bits: int, kernels: Sequence[Sequence[int]]) -> Modelled:
    """kernels: (flops, bytes) of each."""
    flops, nbytes = (sum(each[i] for each in kernels) for i in (0, 1))
    target = chip.model
    if target is None:
        return Modelled(len(kernels), flops, nbytes, None)
    rates = rates_of(target, PEAK[bits])
    seconds = sum(rates.seconds(f, b) for f, b in kernels)
    return Modelled(len(kernels), flops, nbytes, seconds * 1e6)


# ---------------------------------------------------------------- for people


def tables(rows: Sequence[Row]) -> list[Any]:
    """Two rich tables a chip: its machine code with what is wrong, and the roofline beside the unfused sequence."""
    return [
        make([row for row in rows if row.arch == arch], CHIPS[arch])
        for arch in dict.fromkeys(row.arch for row in rows)
        for make in (_machine_code, _roofline)
    ]


def _machine_code(rows: Sequence[Row], chip: Chip) -> Any:
    from rich.console import Group
    from rich.text import Text

    caption = (
        "FLOP, B / instr: tensor-core operations of an output tile, or bytes the launch must move, by warp instruction "
        "issued; headroom: over what the chip can do in the clocks that takes.\n"
        "loads, stores: share of the bytes in 128 bits a thread or more; TMA counts as 100 %. Counted, nothing was run."
    )
    table = _table(f"{chip.arch}: machine code", caption)
    numbers = (
        "regs",
        "spill B",
        "smem KiB",
        "per SM",
        "instrs",
        "loop / MMA",
        "FLOP / instr",
        "B / instr",
        "headroom",
        "loads %",
        "stores %",
        "faults",
    )
    table.add_column("kernel", overflow="fold")
    table.add_column("warps, stages")
    table.add_column("tensor cores", overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right")
    for row in rows:
        code, wrong = row.code, len(row.faults)
        if code is None:
            table.add_row(row.name, *[""] * (len(numbers) + 1), f"{wrong}", style="bold red")
            continue
        table.add_row(
            row.name,
            f"{code.warps}, {code.stages}",
            ", ".join(f"{name} x{count}" for name, count in code.mma.items()) or "–",
            f"{code.registers}",
            f"{code.stack}",
            f"{code.shared / 1024:.0f}",
            f"{code.occupancy}",
            f"{code.instructions}",
            _number(code.loop_per_mma, ".1f"),
            _number(code.flops_per_instruction, ".0f"),
            _number(code.bytes_per_instruction, ".1f"),
            _number(code.headroom, ".2f"),
            _number(code.wide_loads and 100 * code.wide_loads, ".0f"),
            _number(code.wide_stores and 100 * code.wide_stores, ".0f"),
            f"{wrong}",
            style="bold red" if wrong else None,
        )
    return Group(table, *(Text(f"!! {row.name}: {fault}", "bold red") for row in rows for fault in row.faults))


def _roofline(rows: Sequence[Row], chip: Chip) -> Any:
    note = "µs are modelled, not measured" if chip.model else "no peaks are known for this chip, so no times"
    table = _table(f"{chip.arch}: roofline", f"One launch each, and the sequence it replaces; {note}.")
    table.add_column("kernel", overflow="fold")
    for name in ("GFLOP", "MB", "launches", "µs", "unfused MB", "launches", "µs", "bytes of unfused", "x"):
        table.add_column(name, justify="right")
    for row in rows:
        fused, unfused = row.fused, row.unfused
        cells = [f"{fused.flops / 1e9:.2f}", f"{fused.bytes / 1e6:.1f}", f"{fused.launches}", _number(fused.us, ".1f")]
        if unfused:
            times = unfused.us / fused.us if fused.us and unfused.us else None
            share = fused.bytes / unfused.bytes if unfused.bytes else None
            cells += [f"{unfused.bytes / 1e6:.1f}", f"{unfused.launches}", _number(unfused.us, ".1f")]
            cells += [_number(share, ".0%"), _number(times, ".2f")]
        table.add_row(row.name, *cells)
    return table


def _table(title: str, caption: str) -> Any:
    from rich.table import Table

    return Table(title=title, caption=caption, title_justify="left", caption_justify="left")


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def to_json(rows: Sequence[Row]) -> Mapping[str, Any]:
    return {
        "torch": torch.__version__,
        "triton": metadata.version("triton"),
        "kernels": [row.to_json() for row in rows],
    }
