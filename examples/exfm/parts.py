"""Output in numbered Parquet files that others read: each appears once, whole, and never changes.

A part is prepared, then the checkpoint that has it behind itself is saved, then the part is put in place. A crash
before the checkpoint leaves a prepared part that is written again; one after it leaves it to be put in place by the
next start. So what readers see is what checkpoints know, no row missing and none twice.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from examples.exfm.counters import Counters


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
        """Put every part below `count` in place; those prepared beyond it were of a run that was lost."""
        for path in sorted(self.folder.glob(".part-*.parquet")):
            number = int(path.stem.removeprefix(".part-"))
            if number < count:
                os.replace(path, self._place(number))
            else:
                path.unlink()

    def tables(self, start: int = 0, counters: Counters | None = None) -> Iterator[tuple[int, pa.Table]]:
        """The parts in place, from number `start` on. One that is damaged is counted, named and left out."""
        for path in sorted(self.folder.glob("part-*.parquet")):
            number = int(path.stem.removeprefix("part-"))
            if number < start:
                continue
            try:
                yield number, pq.read_table(path, page_checksum_verification=True)
            except (OSError, pa.ArrowException) as error:
                if counters is None:
                    raise
                counters.add("corrupt_part", words=f"{path.name}: {str(error).splitlines()[0]}")

    def _place(self, number: int) -> Path:
        return self.folder / f"part-{number:06}.parquet"

    def _prepared(self, number: int) -> Path:
        return self.folder / f".part-{number:06}.parquet"
