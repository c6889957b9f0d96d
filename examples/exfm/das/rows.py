"""Joined rows: examples with their label and, where there was one, the teacher's score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from examples.exfm.stream.events import flat, wide

WIDE = ("embedding", "ids", "bag")


@dataclass(frozen=True, eq=False)
class Rows:
    """N rows in the order in which they were released.

    id, time        of the example; when it was shown, in seconds
    released        when its label came, or when a vertical logged it after that
    verticals       whose traffic, as bits; first: False where it was released before, to other verticals
    label           0 to 1
    scored          whether the teacher's score is there; if not, the next six mean nothing
    logit, probability, embedding (N, E) float16; version, trained_until: of the snapshot;
                    scored_at: when it was sent to be scored, in the stream's time
    ids (N, fields), bag (N, most)
    """

    id: NDArray[np.int64]
    time: NDArray[np.int64]
    released: NDArray[np.int64]
    verticals: NDArray[np.int64]
    first: NDArray[np.bool_]
    label: NDArray[np.float32]
    scored: NDArray[np.bool_]
    logit: NDArray[np.float32]
    probability: NDArray[np.float32]
    version: NDArray[np.int64]
    trained_until: NDArray[np.int64]
    scored_at: NDArray[np.int64]
    embedding: NDArray[np.float16]
    ids: NDArray[np.int32]
    bag: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.id)

    def take(self, rows: Any) -> Rows:
        return Rows(*(getattr(self, each.name)[rows] for each in fields(self)))

    def of(self, vertical: int) -> Rows:
        """Those of one vertical's traffic."""
        return self.take((self.verticals >> vertical) & 1 == 1)

    def to_table(self) -> pa.Table:
        names = [each.name for each in fields(self)]
        return pa.table({n: wide(getattr(self, n)) if n in WIDE else pa.array(getattr(self, n)) for n in names})

    @classmethod
    def from_table(cls, table: pa.Table) -> Rows:
        names = [each.name for each in fields(cls)]
        return cls(*(flat(table[n]) if n in WIDE else table[n].to_numpy() for n in names))

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {each.name: getattr(self, each.name) for each in fields(self)}


def joined(parts: Sequence[Rows]) -> Rows:
    """One after another; at least one."""
    if len(parts) == 1:
        return parts[0]
    return Rows(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Rows)))
