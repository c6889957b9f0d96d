"""How often a kernel's loops run and what its products amount to, read from Triton's IR.

The text is walked once with the values of the scalar arguments. Program ids are 0. A loop that starts at the program's
own id goes over output tiles (a persistent kernel); all others are part of a tile.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

_VALUE = r"%[\w$.]+(?:#\d+)?"
_FOR = re.compile(rf"scf\.for ({_VALUE}) = ({_VALUE}) to ({_VALUE}) step ({_VALUE})")
_DOT = re.compile(r"= tt\.dot(?:_scaled)? .* -> tensor<([\dx]+)x\w+>")
_ACCESS = re.compile(r"\btt\.(?:load|store|atomic_\w+|descriptor_\w+)\b")
_CONSTANT = re.compile(rf"({_VALUE}) = arith\.constant (-?\d+(?= : i)|true|false)\b")
_ASSIGN = re.compile(rf"({_VALUE}) = ([\w.]+) (.*)")
_ARITHMETIC: dict[str, Callable[..., int]] = {
    "addi": lambda a, b: a + b,
    "subi": lambda a, b: a - b,
    "muli": lambda a, b: a * b,
    "divsi": lambda a, b: a // b,
    "divui": lambda a, b: a // b,
    "remsi": lambda a, b: a % b,
    "remui": lambda a, b: a % b,
    "minsi": min,
    "minui": min,
    "maxsi": max,
    "maxui": max,
    "ceildivsi": lambda a, b: -(-a // b),
    "shli": lambda a, b: a << b,
    "shrsi": lambda a, b: a >> b,
}


@dataclass(frozen=True)
class Loop:
    """trips: None where unknown here, the mean of the programs where it goes over tiles."""

    trips: float | None
    over_tiles: bool


@dataclass(frozen=True)
class Work:
    """dots: (operations of one run of it, the loops around it). accesses: the loops around every load and store.
    types: of the products' operands, as Triton names them. flat: whether Triton makes one loop of that over tiles and
    the one inside it (tl.range's flatten).
    """

    dots: list[tuple[int, tuple[Loop, ...]]] = field(default_factory=list)
    accesses: list[tuple[Loop, ...]] = field(default_factory=list)
    types: set[str] = field(default_factory=set)
    flat: bool = False

    @property
    def tile_flops(self) -> int | None:
        """Tensor-core operations of one output tile; None where a trip count is unknown, as for jagged lengths."""
        total = 0.0
        for flops, around in self.dots:
            trips = [1 if loop.over_tiles else loop.trips for loop in around]
            known = [each for each in trips if each is not None]
            if len(known) < len(trips):
                return None
            total += flops * math.prod(known)
        return round(total)

    @property
    def access_trips(self) -> list[float] | None:
        """Trips of the loops around the deepest access, outermost first; None where one is unknown."""
        trips = [loop.trips for loop in max(self.accesses, key=len, default=())]
        known = [each for each in trips if each is not None]
        return known if len(known) == len(trips) else None


def work(text: str, arguments: Mapping[str, object], programs: int) -> Work:
    """The work of one program of `programs`, by the numbers among its arguments."""
    result = Work(flat="tt.flatten" in text)
    values: dict[str, int | None] = {
        f"%{name}": int(value) for name, value in arguments.items() if isinstance(value, int)
    }
    ids: set[str] = set()
    blocks: list[Loop | None] = []  # what every open brace belongs to
    for line in text.splitlines():
        line = line.partition(" loc(")[0].strip()
        if line.startswith("}") and blocks:
            blocks.pop()
        if found := _FOR.search(line):
            variable, low, high, step = found.groups()
            blocks.append(_loop(values.get(low), values.get(high), values.get(step), low in ids))
            values[variable] = values.get(low)
            continue
        if line.endswith("{"):
            blocks.append(Loop(None, False) if "scf.while" in line or line == "} do {" else None)
            continue
        around = tuple(loop for loop in blocks if loop)
        if found := _DOT.search(line):
            tensors = re.findall(r"tensor<([\dx]+)x(\w+)>", line)
            shapes = [[int(size) for size in sizes.split("x")] for sizes, _ in tensors]
            result.types.update(name for _, name in tensors[:2])
            result.dots.append((2 * math.prod(shapes[-1]) * shapes[0][-1], around))
        elif _ACCESS.search(line):
            result.accesses.append(around)
        elif found := _CONSTANT.match(line):
            word = found.group(2)
            values[found.group(1)] = int(word == "true") if word in ("true", "false") else int(word)
        elif found := _ASSIGN.match(line):
            name, operation, operands = found.groups()
            values[name] = _value(operation, operands, values, programs)
            if operation == "tt.get_program_id" or (operation == "arith.extsi" and operands.split()[0] in ids):
                ids.add(name)
    return result


def _loop(low: int | None, high: int | None, step: int | None, over_tiles: bool) -> Loop:
    if low is None or high is None or not step:
        return Loop(None, over_tiles)
    return Loop(max(0.0, (high - low) / step) if over_tiles else max(0, -(-(high - low) // step)), over_tiles)


def _value(operation: str, operands: str, values: Mapping[str, int | None], programs: int) -> int | None:
    if "tensor<" in operands:
        return None
    if operation == "tt.get_program_id":
        return 0
    if operation == "tt.get_num_programs":
        return programs
    known = [values.get(name) for name in re.findall(_VALUE, operands.partition(" : ")[0])]
    if None in known or not known:
        return None
    if operation in ("arith.extsi", "arith.extui", "arith.trunci", "arith.index_cast"):
        return known[0]
    compute = _ARITHMETIC.get(operation.removeprefix("arith."))
    if not compute or len(known) != 2 or (known[1] == 0 and operation.endswith(("divsi", "divui", "remsi", "remui"))):
        return None
    return compute(*known)
