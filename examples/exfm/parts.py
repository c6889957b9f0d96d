"""Output in numbered Parquet files that others read: each appears whole, and holds the same whenever it is made.

A part is prepared, then the checkpoint that has it behind itself is saved, then the part is put in place. A crash
before the checkpoint leaves a prepared part that is written again; one after it leaves it to be put in place by the
next start. So what readers see is what checkpoints know, no row missing and none twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from examples.exfm.counters import Counters
from examples.exfm.errors import ExfmError


@dataclass(frozen=True)
class Parts:
    """A folder of them."""

    folder: Path

    def prepare(self, number: int, table: pa.Table) -> None:
        """Write a part where no reader looks. One that is in place already stays as it is."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._place(number).exists():
            pq.write_table(table, self._prepared(number), compression="zstd", write_page_checksum=True)
            with self._prepared(number).open("rb") as file:
                os.fsync(file.fileno())

    def commit(self, count: int) -> None:
        """Put every part below `count` in place; those prepared beyond it were of a run that was lost. Raises ExfmError
        if one below it is neither prepared nor in place."""
        for path in sorted(self.folder.glob(".part-*.parquet")):
            number = _number(path)
            if number < count:
                os.replace(path, self._place(number))
            else:
                path.unlink()
        gone = [number for number in range(count) if not self._place(number).exists()]
        if gone:
            raise ExfmError(f"{self._place(gone[0])} is gone, which a checkpoint knows: begin anew in another folder")

    def go_back(self, count: int) -> None:
        """As a checkpoint that has `count` parts behind itself knows it: later ones are of a run that was lost. Raises
        ExfmError if one of its own is gone."""
        for path in self.folder.glob("part-*.parquet"):
            if _number(path) >= count:
                path.unlink()
        self.commit(count)

    def tables(
        self,
        start: int = 0,
        counters: Counters | None = None,
        made: Callable[[pa.Table], Any] = lambda table: table,
        columns: list[str] | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """The parts in place, from number `start` on, as what `made` makes of them; `columns` alone if any are named.
        One that is damaged is counted, named and left out, as is one that is gone, or raises if nobody counts."""
        for number in range(start, self.count):
            path = self._place(number)
            try:
                found = made(pq.read_table(path, columns=columns, page_checksum_verification=True))
            except Exception as error:  # Arrow raises many kinds for a damaged file
                if counters is None:
                    raise
                counters.add("corrupt_part", words=f"{path.name}: {str(error).splitlines()[0]}")
                continue
            yield number, found

    @property
    def count(self) -> int:
        """The number behind the last part in place."""
        return max((_number(path) for path in self.folder.glob("part-*.parquet")), default=-1) + 1

    def _place(self, number: int) -> Path:
        return self.folder / f"part-{number:06}.parquet"

    def _prepared(self, number: int) -> Path:
        return self.folder / f".part-{number:06}.parquet"


def _number(path: Path) -> int:
    """Of a part, in place or prepared."""
    return int(path.stem.rpartition("-")[2])
