"""A picture of the modelled steps: one bar a side, one block a kernel, in launch order and to scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loka_compile.preview.model import kernel_us
from loka_compile.preview.report import Preview
from loka_compile.preview.result import Kernel

COLOURS = {
    "product, 16 or 32 bits": "#3b6fb6",
    "product, 8 bits": "#2a9d5c",
    "quantize": "#d98c26",
    "other": "#b9bec7",
}


def save(preview: Preview, path: str | Path) -> list[Path]:
    """Writes the picture as PNG and SVG beside each other, whatever the suffix of `path`. Needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    sides = [side for side in preview.sides if side.kernels]
    figure = Figure(figsize=(12, 1.6 + 0.6 * len(sides)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row, side in enumerate(sides):
        at = 0.0
        for kernel in side.kernels:
            us, _ = kernel_us(kernel.flops, kernel.bytes, kernel.dtype, preview.rates)
            colour, hatch = COLOURS[what(kernel)], "//" if kernel.phase == "backward" else None
            axes.barh(row, us, left=at, color=colour, hatch=hatch, edgecolor="white", linewidth=0.5)
            at += us
        axes.text(at, row, f" {at:.0f} µs", va="center")
    axes.set_yticks(range(len(sides)), [side.name for side in sides])
    axes.invert_yaxis()
    axes.set_xlabel(f"µs, modelled: {preview.rates}", fontsize=8)
    axes.margins(x=0.08)
    axes.set_title(
        f"{preview.model} on {preview.target}: one step, kernel by kernel (modelled, not measured)", loc="left"
    )
    legend: list[Any] = [Patch(color=colour, label=name) for name, colour in COLOURS.items()]
    if preview.training:
        legend.append(Patch(facecolor="white", edgecolor="grey", hatch="//", label="backward"))
    axes.legend(handles=legend, loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=len(legend), frameon=False)
    written = [Path(path).with_suffix(suffix) for suffix in (".png", ".svg")]
    for file in written:
        figure.savefig(file, dpi=150)
    return written


def what(kernel: Kernel) -> str:
    """Which of COLOURS a kernel has."""
    narrow = ("e4m3", "e5m2", "i8", "u8")
    if kernel.flops:
        return "product, 8 bits" if kernel.dtype.startswith(("float8", "int8", "uint8")) else "product, 16 or 32 bits"
    return "quantize" if any(shape.startswith(narrow) for shape in (*kernel.inputs, *kernel.outputs)) else "other"
