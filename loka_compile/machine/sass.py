"""NVIDIA machine code: nvdisasm's text as instructions, cuobjdump's table of resources."""

from __future__ import annotations

import re
from collections import Counter

from loka_compile.machine.instructions import Code, Instruction

_LINE = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
_LABEL = re.compile(r"^(\S+):\s*$")
_WARP_GROUP = re.compile(r"^([HQI]GMMA)\.(\d+)x(\d+)x(\d+)")  # wgmma: a warp's share is a quarter
_WARP = re.compile(r"^([HQI]MMA)\.(\d{4,6})")
_TENSOR_MEMORY = re.compile(r"^UTC([HQI])MMA")  # tcgen05: its shape is in a descriptor, not in the opcode
_SHAPES = {"1688": (16, 8, 8), "16816": (16, 8, 16), "16832": (16, 8, 32), "16864": (16, 8, 64)}
_BITS = {"H": 16, "Q": 8, "I": 8}
_TYPES = re.compile(r"\.(E4M3|E5M2|BF16|TF32)\b")
_DESCRIPTOR_K = {"f16": 16, "tf32": 8, "f8f6f4": 32, "i8": 32}


def parse(text: str, kernel: str, ptx: str) -> Code:
    """`nvdisasm -c`'s text of one kernel; the PTX is for the shapes of tcgen05 products."""
    tensor_memory = tensor_memory_shape(ptx)
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    here = False
    for line in text.splitlines():
        if line.startswith("//---"):
            here = f".text.{kernel}" in line.split()
        elif here and (found := _LINE.match(line)):
            instructions.append(_instruction(found[1], found[2], found[3], tensor_memory))
        elif here and (found := _LABEL.match(line)):
            labels[found.group(1)] = len(instructions)
    return Code(tuple(instructions), labels)


def resources(text: str, kernel: str) -> dict[str, int]:
    """`cuobjdump -res-usage`'s line of one kernel: {"REG": 169, "STACK": 0, "SHARED": 1024, ...}."""
    found = re.search(rf"Function {re.escape(kernel)}:\s*\n\s*(.*)", text)
    if not found:
        raise RuntimeError(f"cuobjdump says nothing about {kernel}")
    return {name: int(value) for name, value in re.findall(r"([A-Z]+)(?:\[\d\])?:(\d+)", found.group(1))}


def threads(ptx: str) -> int | None:
    """Threads of one program, with the warps that specialisation adds."""
    found = re.search(r"\.reqntid (\d+)", ptx)
    return int(found.group(1)) if found else None


def tensor_memory_shape(ptx: str) -> tuple[int, int, int] | None:
    """M, N, K of the tcgen05 products: the commonest of what their instruction descriptors say (PTX ISA 9.7.16.4)."""
    constants = {name: int(value) for name, value in re.findall(r"mov\.b32\s+(%r\d+), (-?\d+);", ptx)}
    shapes: Counter[tuple[int, int, int]] = Counter()
    for kind, operands in re.findall(r"tcgen05\.mma\.cta_group::\d\.kind::(\w+)([^;]*);", ptx):
        plain = re.sub(r"\[[^\]]*\]", "", operands)
        for word in re.findall(r"%r\d+|\b\d{6,}\b", plain):
            descriptor = constants.get(word) if word.startswith("%") else int(word)
            if descriptor is not None and kind in _DESCRIPTOR_K:
                m, n = (descriptor >> 24 & 0x1F) * 16, (descriptor >> 17 & 0x3F) * 8
                shapes[m, n, _DESCRIPTOR_K[kind]] += 1
                break
    return shapes.most_common(1)[0][0] if shapes else None


def _instruction(
    predicate: str | None, op: str, operands: str, tensor_memory: tuple[int, int, int] | None
) -> Instruction:
    name, _, _ = op.partition(".")
    if name in ("BRA", "JMP"):
        to = re.search(r"`\(([^)]+)\)", operands)
        sometimes = predicate or re.match(r"!?U?P\d", operands) or any(x in op for x in (".U", ".DIV", ".CONV"))
        return Instruction(op, jump=to.group(1) if to else "", always=not sometimes, ends=not to)
    if name in ("EXIT", "RET", "KILL", "BRX", "JMX", "BRXU"):
        return Instruction(op, ends=True, always=not predicate)
    if mma := _mma(op, tensor_memory):
        return mma
    if name in ("LDG", "STG", "LD", "ST", "LDGSTS"):
        return Instruction(op, access="store" if name in ("STG", "ST") else "load", width=_width(op))
    if name in ("UTMALDG", "UBLKCP"):  # UBLKCP copies either way; Triton only ever loads with it
        return Instruction(op, access="load")
    if name in ("UTMASTG", "UTMAREDG"):
        return Instruction(op, access="store")
    return Instruction(op, local=name in ("LDL", "STL"))


def _mma(op: str, tensor_memory: tuple[int, int, int] | None) -> Instruction | None:
    types = "".join(_TYPES.findall(op)[:1])
    ending = f".{types}" if types else ""
    if found := _WARP_GROUP.match(op):
        m, n, k = map(int, found.groups()[1:])
        bits = 32 if types == "TF32" else _BITS[op[0]]
        return Instruction(op, mma=found.group(0) + ending, bits=bits, flops=2 * m * n * k // 4)
    if found := _WARP.match(op):
        m, n, k = _SHAPES.get(found.group(2), (0, 0, 0))
        bits = 32 if types == "TF32" else _BITS[op[0]]
        return Instruction(op, mma=found.group(0) + ending, bits=bits, flops=2 * m * n * k)
    if found := _TENSOR_MEMORY.match(op):
        m, n, k = tensor_memory or (0, 0, 0)
        shape = f".{m}x{n}x{k}" if tensor_memory else ""
        return Instruction(op, mma=found.group(0) + shape, bits=_BITS[found.group(1)], flops=2 * m * n * k, once=True)
    return None


def _width(op: str) -> int:
    found = re.search(r"\.(?:(256|128|64)|[US](16|8))\b", op)
    return int(found.group(1) or found.group(2)) if found else 32
