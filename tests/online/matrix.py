"""The matrix of ways of use: who is compiled (a row, rows.py) and how it is called (a column, columns.py).

python -m tests.online.matrix [row or column ...]     prints it, cell by cell as they come, then as a table
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence

from tests.online import ranks
from tests.online.cells import Cell
from tests.online.columns import COLUMNS
from tests.online.rows import ROWS

CELLS = [(row, column) for row in ROWS for column in COLUMNS]


def table(found: Sequence[Cell]) -> str:
    """The cells as a table in Markdown, rows of the matrix down."""
    shown = {(each.row, each.column): f"**{each.wrong}**" if each.wrong else each.shows for each in found}
    rows = [row for row in ROWS if any(where[0] == row for where in shown)]
    columns = [column for column in COLUMNS if any(where[1] == column for where in shown)]
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    lines += [[row, *(shown.get((row, column), "") for column in columns)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(names: Sequence[str]) -> int:
    """Print the matrix, or the rows and columns that are named; how many cells are wrong."""
    if unknown := [name for name in names if name not in ROWS and name not in COLUMNS]:
        raise SystemExit(f"unknown: {', '.join(unknown)}; rows: {', '.join(ROWS)}; columns: {', '.join(COLUMNS)}")
    rows = [name for name in ROWS if name in names] or list(ROWS)
    columns = [name for name in COLUMNS if name in names] or list(COLUMNS)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LOKA_CACHE_DIR"] = folder
        found = ranks.cells([(row, column) for row in rows for column in columns])
    print(table(found))
    return sum(bool(each.wrong) for each in found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
