"""A preview as tables: the sides beside each other, and each side's kernels in launch order."""

from __future__ import annotations

import io
from typing import Any

from loka_compile.preview.model import kernel_us
from loka_compile.preview.result import Kernel, Preview, Side

LEVELS = "µs are modelled, not measured; registers, spills and occupancy are compiled"


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
