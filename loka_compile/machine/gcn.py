"""AMD machine code: LLVM's assembly text as instructions, and the table of resources at its end."""

from __future__ import annotations

import re

from loka_compile.machine.instructions import Code, Instruction

_MFMA = re.compile(r"^v_mfma(?:_scale)?_\w+?_(\d+)x(\d+)x(\d+)_?(\w*)")
_ACCESS = re.compile(r"^(?:global|buffer|flat)_(load|store)_(\w+)")
_WIDTHS = {
    "dwordx4": 128,
    "dwordx3": 96,
    "dwordx2": 64,
    "dword": 32,
    "short": 16,
    "ushort": 16,
    "sshort": 16,
    "byte": 8,
    "ubyte": 8,
    "sbyte": 8,
}


def parse(text: str, kernel: str) -> Code:
    """The instructions of one kernel in LLVM's assembly."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    here = False
    for line in text.splitlines():
        line = line.split(";", 1)[0].strip()
        if line.startswith(f"{kernel}:"):
            here = True
        elif here and line.startswith(".Lfunc_end"):
            break
        elif here and (found := re.match(r"^([.\w]+):", line)):
            labels[found.group(1)] = len(instructions)
        elif here and line and not line.startswith("."):
            instructions.append(_instruction(line))
    return Code(tuple(instructions), labels)


def resources(text: str) -> dict[str, int]:
    """{"vgpr_count": 128, "vgpr_spill_count": 0, ...} of the only kernel in the text."""
    return {name: int(value) for name, value in re.findall(r"^\s+\.(\w+):\s+(\d+)\s*$", text, re.M)}


def _instruction(line: str) -> Instruction:
    op, _, operands = line.partition(" ")
    if op.startswith(("s_branch", "s_cbranch")):
        return Instruction(op, jump=operands.strip(), always=op == "s_branch")
    if op.startswith(("s_endpgm", "s_setpc")):
        return Instruction(op, ends=True, always=True)
    if found := _MFMA.match(op):
        m, n, k = map(int, found.groups()[:3])
        return Instruction(op, mma=op, bits=_bits(found.group(4)), flops=2 * m * n * k)
    if found := _ACCESS.match(op):
        width = next((bits for name, bits in _WIDTHS.items() if found.group(2).startswith(name)), 32)
        return Instruction(op, access=found.group(1), width=width)
    return Instruction(op, local=op.startswith("scratch_"))


def _bits(types: str) -> int:
    if re.search(r"fp8|bf8|f8|i8", types):
        return 8
    return 16 if "f16" in types else 32
