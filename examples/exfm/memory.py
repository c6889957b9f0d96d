"""The newest rows that a teacher has learned from, to learn from again. Students pass over the past once; the teacher,
which is not served, can afford more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.exfm.das.rows import Rows
from examples.exfm.stream.events import Schema

Lesson = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]
"""ids (N, fields), bag (N, places), label (N,)."""


class Memory:
    """A ring of `size` rows; `taken` of them have come."""

    def __init__(self, schema: Schema, size: int) -> None:
        self.size, self.taken = size, 0
        self.columns: Lesson = (
            np.zeros((size, len(schema.fields)), np.int32),
            np.zeros((size, schema.places), np.int32),
            np.zeros(size, np.float32),
        )

    def add(self, rows: Rows) -> None:
        """`size` rows at most."""
        place = (self.taken + np.arange(len(rows))) % self.size
        for column, values in zip(self.columns, (rows.ids, rows.bag, rows.label), strict=True):
            column[place] = values
        self.taken += len(rows)

    def draw(self, rng: np.random.Generator, count: int) -> Lesson:
        """So many, any of them as likely as another."""
        place = rng.integers(0, min(self.taken, self.size), count)
        ids, bag, label = (column[place] for column in self.columns)
        return ids, bag, label

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is held, for a checkpoint."""
        held = min(self.taken, self.size)
        ids, bag, label = (column[:held] for column in self.columns)
        return {"ids": ids, "bag": bag, "label": label, "taken": np.array([self.taken])}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        for column, name in zip(self.columns, ("ids", "bag", "label"), strict=True):
            column[: len(arrays[name])] = arrays[name]
        self.taken = int(arrays["taken"][0])
