"""Decisions and rewrites, site by site: as data, as plain text, and for a rich console."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from loka_compile.inspect.details import choice, details, shared_first, wrapped
from loka_compile.inspect.lookup import rows_of
from loka_compile.inspect.row import Row

WIDTH = 160
STYLES = {
    "lowered": "green",
    "planned": "green",
    "missing": "bold red",
    "refused": "yellow",
    "gone": "yellow",
    "pending": "yellow",
    "kept": "dim",
    "absent": "dim",
}


@dataclass(frozen=True)
class Explanation:
    """Decisions and rewrites, to be printed. graphs: name -> `inference` or `training`, empty for a plan alone.
    inputs: name -> what the graph is called with. notes: how races ended, and what online sessions say of
    themselves."""

    target: str
    origin: str
    rows: tuple[Row, ...]
    graphs: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    inputs: dict[str, str] = field(default_factory=dict)

    @property
    def found(self) -> list[Row]:
        """The rows of sites that are in a compiled graph."""
        return [row for row in self.rows if row.outcome != "absent"]

    @property
    def lowered(self) -> list[Row]:
        return [row for row in self.rows if row.lowered]

    def why(self, site: str) -> str:
        """Why a site was decided as it was, and every candidate and pass that said no.

        site: its key as in the table, the path of a module, or any part of a key that only one module has. Raises
        ValueError where that is no site, or those of several modules, with the nearest names.
        """
        return "\n".join(details(rows_of(site, self.rows), WIDTH))

    def __str__(self) -> str:
        return text(self)

    def __rich__(self) -> Any:
        return rich(self)

    def to_json(self) -> str:
        body = {
            "target": self.target,
            "origin": self.origin,
            "graphs": self.graphs,
            "inputs": self.inputs,
            "warnings": self.warnings,
            "notes": self.notes,
            "sites": len(self.found),
            "lowered_sites": len(self.lowered),
            "rows": [row.as_dict() for row in self.rows],
        }
        return json.dumps(body, indent=1, allow_nan=False) + "\n"


@dataclass(frozen=True)
class Column:
    """cell: the text for a row. right: aligned right, as numbers are. narrowest: the least width in characters; 0 keeps
    the column as wide as its cells."""

    header: str
    cell: Callable[[Row], str]
    right: bool = False
    narrowest: int = 0


def columns(explanation: Explanation) -> list[Column]:
    artifact = [Column("runs as", _runs_as)] if explanation.graphs else []
    which = [Column("in", _graph_numbers)] if len(explanation.graphs) > 1 else []
    return [
        Column("site", lambda row: row.key, narrowest=16),
        *which,
        Column("shape", lambda row: row.shape, narrowest=12),
        Column("choice", choice, narrowest=12),
        *artifact,
        Column("MERE", lambda row: _number(row.mere, 4), right=True),
        Column("SQNR dB", lambda row: _number(row.sqnr_db, 1), right=True),
        Column("median", lambda row: _number(row.median_rel, 4), right=True),
        Column("before", lambda row: _us(row.time_before_us), right=True),
        Column("after", lambda row: _us(row.time_after_us), right=True),
        Column("x", lambda row: _number(row.speedup, 2), right=True),
    ]


def text(explanation: Explanation, width: int = WIDTH) -> str:
    """Warnings, the table, totals, then the reasons and what was rejected, in lines of at most `width` characters."""
    blocks = [_lines([title(explanation)], width)]
    if explanation.warnings:
        blocks.append("\n".join(wrapped(f"!! {warning}", width, "   ") for warning in explanation.warnings))
    shown = explanation.found
    blocks.append("\n".join(_table(shown, columns(explanation), width)) if shown else "no GEMM was found")
    blocks.append(_lines([*totals(explanation), *explanation.notes, caption(explanation)], width))
    if explanation.rows:
        blocks.append("\n".join(_why(explanation, width)))
    return "\n\n".join(blocks)


def rich(explanation: Explanation) -> Any:
    """The same for a rich console, coloured by outcome."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    above, below = Text(title(explanation)), Text(caption(explanation))  # Text: nothing in them is markup
    table = Table(title=above, caption=below, title_justify="left", caption_justify="left")
    for column in columns(explanation):
        table.add_column(column.header, justify="right" if column.right else "left", overflow="fold")
    for row in explanation.found:
        table.add_row(*(Text(column.cell(row)) for column in columns(explanation)), style=STYLES[row.outcome])
    warnings = [Text(f"!! {warning}", style="bold red") for warning in explanation.warnings]
    below_table = Text("\n".join([*totals(explanation), *explanation.notes]))
    return Group(*warnings, table, below_table, Text("\n".join(_why(explanation, WIDTH))))


# ---------------------------------------------------------------- lines around the table


def title(explanation: Explanation) -> str:
    graphs = ", ".join(f"{name} ({kind})" for name, kind in explanation.graphs.items())
    parts = (f"target {explanation.target}", f"plan from {explanation.origin or 'unknown origin'}", graphs)
    return "loka: " + " · ".join(filter(None, parts))


def totals(explanation: Explanation) -> list[str]:
    """One line a graph: sites, how many lowered, the GEMMs' time before and after."""
    if not explanation.graphs:
        return [_total("plan", explanation.found)]
    several = len(explanation.graphs) > 1
    return [
        _total(f"{name} ({kind})", [row for row in explanation.found if name in row.graphs])
        + (f"; called with {explanation.inputs[name]}" if several and name in explanation.inputs else "")
        for name, kind in explanation.graphs.items()
    ]


def _total(name: str, rows: Sequence[Row]) -> str:
    lowered = sum(row.outcome in ("lowered", "planned") for row in rows)
    line = f"{name}: {len(rows)} sites, {lowered} {'lowered' if name != 'plan' else 'to lower'}"
    timed = [row for row in rows if row.time_before_us is not None]
    if not timed:
        return line
    before = sum(row.time_before_us or 0.0 for row in timed)
    after = sum(_counted(row) for row in timed)
    partial = "" if len(timed) == len(rows) else f" ({len(timed)} sites have times)"
    return f"{line}, GEMM time {_us(before)} -> {_us(after)} µs ({before / max(after, 1e-9):.2f}x){partial}"


def _counted(row: Row) -> float:
    """The time that counts for a row after planning. A site that was not lowered takes as long as before."""
    lowered = row.outcome in ("lowered", "planned") and row.time_after_us is not None
    return (row.time_after_us if lowered else row.time_before_us) or 0.0


def caption(explanation: Explanation) -> str:
    sources = list(dict.fromkeys(row.time_source for row in explanation.found if row.time_source))
    times = f"µs of one call, {'; '.join(sources)}" if sources else "none known"
    return f"times: {times}. errors: of the choice on the probe's operands, against float32"


def _why(explanation: Explanation, width: int) -> list[str]:
    return ["why, and what was rejected (all of one site: `why(site)`)", *shared_first(explanation.rows, width)]


# ---------------------------------------------------------------- cells


def _runs_as(row: Row) -> str:
    return row.runs_as if row.lowered else "-" if row.outcome == "kept" else row.outcome.upper()


def _graph_numbers(row: Row) -> str:
    return ",".join(name.removeprefix("graph_") for name in row.graphs)


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return "-"
    smallest = 10.0**-digits
    return f"<{smallest:.{digits}f}" if 0 < value < smallest / 2 else f"{value:.{digits}f}"


def _us(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"


# ---------------------------------------------------------------- plain text


def _table(rows: Sequence[Row], shown: Sequence[Column], width: int) -> list[str]:
    cells = [[column.header for column in shown], *([column.cell(row) for column in shown] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(shown))]
    gaps = 2 * (len(shown) - 1)
    while sum(widths) + gaps > width:
        elastic = [i for i, column in enumerate(shown) if column.narrowest and widths[i] > column.narrowest]
        if not elastic:
            break
        widths[max(elastic, key=widths.__getitem__)] -= 1  # the widest gives way first
    fitted = ([_fit(*of) for of in zip(line, widths, (c.right for c in shown), strict=True)] for line in cells)
    lines = ["  ".join(line) for line in fitted]
    return [lines[0].rstrip(), "  ".join("-" * w for w in widths), *(line.rstrip() for line in lines[1:])]


def _fit(cell: str, width: int, right: bool) -> str:
    """Padded, or shortened in the middle: the ends of a site's name tell it apart."""
    if len(cell) > width:
        head = (width - 1) // 2
        cell = f"{cell[:head]}…{cell[len(cell) - (width - 1 - head) :]}"
    return cell.rjust(width) if right else cell.ljust(width)


def _lines(lines: Sequence[str], width: int) -> str:
    return "\n".join(wrapped(line, width, "  ") for line in lines)
