"""A preview's result and its tables: the sides beside each other, and each side's kernels in launch order."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from loka_compile.preview.model import Rates, kernel_us
from loka_compile.preview.result import Kernel, Side

LEVELS = "µs are modelled, not measured; registers, spills and occupancy are compiled"


@dataclass(frozen=True)
class Preview:
    """One model on one target. sides: the first is what the others are held against ("against"), where it is there.
    rates: what times are modelled with. memory: bytes that a step needs at least. where: the GPU, if it was measured.
    plan: the one that loka's side follows, as Plan.to_json writes it (dispatch.plan.parse_plan reads it), "" if none.
    options: what loka's side is compiled with beside it.
    """

    model: str
    target: str
    training: bool
    against: str
    sides: tuple[Side, ...]
    rates: Rates
    memory: int = 0
    capacity: float = float("inf")
    versions: Mapping[str, str] = field(default_factory=dict)
    where: str = ""
    plan: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def side(self, name: str) -> Side:
        """Raises KeyError for a side that is not there."""
        for side in self.sides:
            if side.name == name:
                return side
        raise KeyError(f"no side {name!r}; there are {', '.join(side.name for side in self.sides)}")

    def speedup(self, name: str, over: str = "", graphs: bool = False) -> float | None:
        """Modelled, of one side over another (`against`); None where either has nothing to show."""
        pair = [
            next((s for s in self.sides if s.name == n and s.kernels and not s.error), None)
            for n in (over or self.against, name)
        ]
        if None in pair:
            return None
        base, own = pair
        return base.us(self.rates, graphs) / own.us(self.rates, graphs)  # type: ignore[union-attr]

    @property
    def complete(self) -> bool:
        """Every side has something to show, and the model fits in the GPU's memory."""
        return not any(side.error for side in self.sides) and self.memory <= self.capacity

    def to_json(self) -> dict[str, Any]:
        """Everything, with modelled times worked out, each marked as such."""
        body = asdict(self)
        body["plan"] = json.loads(self.plan) if self.plan else None
        body["capacity"] = self.capacity if self.capacity != float("inf") else None
        for own, side in zip(body["sides"], self.sides, strict=True):
            own["totals"] = {
                "kernels": len(side.kernels),
                "flops": side.flops,
                "bytes": side.bytes,
                "low_precision_flops": side.low_precision,
                "modelled_us": side.us(self.rates),
                "modelled_us_cuda_graphs": side.us(self.rates, graphs=True),
                "measured_us": side.measured_us,
                f"modelled_speedup_over_{self.against}": self.speedup(side.name),
            }
            for body_of, kernel in zip(own["kernels"], side.kernels, strict=True):
                us, bound = kernel_us(kernel.flops, kernel.bytes, kernel.dtype, self.rates)
                body_of |= {"modelled_us": us, "bound_by": bound}
        return body

    def __str__(self) -> str:
        return as_text(self)

    def __rich__(self) -> Any:
        return tables(self)


def tables(preview: Preview, kernels: bool = True) -> Any:
    """For rich to print. kernels: with those of every side."""
    from rich.console import Group

    parts: list[Any] = [_summary(preview)]
    parts += [_kernels(preview, side) for side in preview.sides if kernels and side.kernels]
    return Group(*parts, *_messages(preview))


def as_text(preview: Preview, kernels: bool = True) -> str:
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=200, markup=False, highlight=False).print(tables(preview, kernels))
    return out.getvalue().rstrip()


def _summary(preview: Preview) -> Any:
    what = "forward and backward" if preview.training else "inference"
    caption = f"µs modelled: {preview.rates}."
    table = _table(f"{preview.model} on {preview.target}, one step, {what}", caption)
    table.add_column("side")
    measured = any(side.measured_us is not None for side in preview.sides)
    for name in ("kernels", "Triton", "GFLOP", "8 bits", "MB", "µs modelled", "in a CUDA graph", "speed-up modelled"):
        table.add_column(name, justify="right")
    if measured:
        table.add_column(f"µs measured ({preview.where})", justify="right")
        table.add_column("model's error", justify="right")
    for side in preview.sides:
        if not side.kernels:
            table.add_row(side.name, *["–"] * (8 + 2 * measured))
            continue
        us, speedup = side.us(preview.rates), preview.speedup(side.name)
        cells = [str(len(side.kernels)), str(sum(k.kind == "triton" for k in side.kernels))]
        cells += [f"{side.flops / 1e9:.2f}", f"{side.low_precision:.0%}", f"{side.bytes / 1e6:.1f}", f"{us:.1f}"]
        cells += [f"{side.us(preview.rates, graphs=True):.1f}", "–" if speedup is None else f"{speedup:.2f}x"]
        if measured:
            seen = side.measured_us
            cells += ["–", "–"] if seen is None else [f"{seen:.1f}", f"{us / seen - 1:+.0%}"]
        table.add_row(side.name, *cells)
    return table


def _kernels(preview: Preview, side: Side) -> Any:
    from rich.text import Text

    table = _table(f"{side.name}: kernels in launch order", LEVELS + ".")
    table.add_column("#", justify="right")
    for name in ("", "kernel", "works for", "operands"):
        table.add_column(name, overflow="fold")
    for name in ("GFLOP", "MB", "µs modelled", "bound by", "regs", "spills", "shared", "programs/SM", "waves"):
        table.add_column(name, justify="right")
    for place, kernel in enumerate(side.kernels):
        us, bound = kernel_us(kernel.flops, kernel.bytes, kernel.dtype, preview.rates)
        gflop = f"{kernel.flops / 1e9:.2f}" if kernel.flops else ""
        name = kernel.name + (f" ({kernel.op})" if kernel.op and kernel.op != kernel.name else "")
        figures = [gflop, f"{kernel.bytes / 1e6:.2f}", f"{us:.2f}", bound, *_compiled(kernel)]
        row = [str(place), kernel.phase[0] + "wd", name, kernel.site, _operands(kernel), *figures]
        table.add_row(*(Text(cell) for cell in row), style="bold red" if _spills(kernel) else None)
    return table


def _compiled(kernel: Kernel) -> list[str]:
    if not kernel.resources:
        return [""] * 5
    return [str(kernel.resources[name]) for name in ("registers", "spills", "shared", "occupancy", "waves")]


def _spills(kernel: Kernel) -> bool:
    return bool(kernel.resources and kernel.resources["spills"])


def _operands(kernel: Kernel) -> str:
    shown = [*kernel.inputs[:4], *(["…"] if len(kernel.inputs) > 4 else [])]
    return " ".join(shown) + (f" → {' '.join(kernel.outputs[:2])}" if kernel.outputs else "")


def _messages(preview: Preview) -> list[Any]:
    from rich.text import Text

    lines = []
    if preview.memory > preview.capacity:
        lines.append(
            f"!! a step needs at least {preview.memory / 1e9:.1f} GB for parameters, inputs and gradients; "
            f"{preview.target} has {preview.capacity / 1e9:.0f} GB: it would not run there"
        )
    for side in preview.sides:
        lines += [f"!! {side.name}: {side.error}"] if side.error else []
        lines += [f"{side.name}: {note}" for note in side.notes]
        if side.graphs > 1:
            lines.append(f"{side.name}: the model was compiled as {side.graphs} graphs")
        for note, count in _counted(side).items():
            lines.append(f"{side.name}: {note}" + (f" ({count} kernels)" if count > 1 else ""))
    return [Text(line, "bold red" if line.startswith("!!") else "") for line in lines]


def _counted(side: Side) -> dict[str, int]:
    counts: dict[str, int] = {}
    for kernel in side.kernels:
        if kernel.note:
            note = f"{kernel.name}: {kernel.note}"
            counts[note] = counts.get(note, 0) + 1
    return counts


def _table(title: str, caption: str) -> Any:
    from rich.table import Table

    return Table(title=title, caption=caption, title_justify="left", caption_justify="left")
