"""The examples that wait, in a ring of fixed size, in the order in which they came.

One is found by its id. It stays for a window after it came, released or not: as long as that its label may come,
another vertical may log it, and a duplicate is known as one. Memory is what the ring takes, whatever happens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.exfm.das.rows import Rows
from examples.exfm.stream.events import Schema

WAITING, UNDER_WAY, SCORED, UNSCORED = range(4)
"""What the teacher has said of an example: nothing, not yet, a score, and that there will be none."""


class Waiting:
    """Columns of `capacity` places. Example number n, counted from the first ever, lies in place n % capacity."""

    def __init__(self, schema: Schema, capacity: int, embedding: int) -> None:
        self.capacity = capacity
        self.begin = self.end = 0
        self.columns: dict[str, NDArray[Any]] = {
            "id": np.zeros(capacity, np.int64),
            "time": np.zeros(capacity, np.int64),
            "logged": np.zeros(capacity, np.int64),
            "verticals": np.zeros(capacity, np.int64),
            "label": np.zeros(capacity, np.float32),
            "state": np.zeros(capacity, np.uint8),
            "logit": np.zeros(capacity, np.float32),
            "version": np.zeros(capacity, np.int64),
            "trained_until": np.zeros(capacity, np.int64),
            "scored_at": np.zeros(capacity, np.int64),
            "embedding": np.zeros((capacity, embedding), np.float16),
            "ids": np.zeros((capacity, len(schema.fields)), np.int32),
            "bag": np.zeros((capacity, schema.places), np.int32),
        }
        self.number: dict[int, int] = {}

    def __len__(self) -> int:
        return self.end - self.begin

    @property
    def full(self) -> bool:
        return len(self) == self.capacity

    def place(self, numbers: Any) -> Any:
        return numbers % self.capacity

    def add(self, id: int, time: int, logged: int, vertical: int, ids: NDArray[Any], bag: NDArray[Any]) -> int:
        """One more, which may not be `full`; its number."""
        place, columns = self.end % self.capacity, self.columns
        columns["id"][place], columns["time"][place], columns["logged"][place] = id, time, logged
        columns["verticals"][place], columns["label"][place] = 1 << vertical, np.nan
        columns["state"][place], columns["logit"][place] = WAITING, 0
        columns["embedding"][place] = 0
        columns["ids"][place], columns["bag"][place] = ids, bag
        columns["version"][place] = columns["trained_until"][place] = columns["scored_at"][place] = 0
        self.number[id] = self.end
        self.end += 1
        return self.end - 1

    def drop(self) -> None:
        """Forget the oldest."""
        del self.number[int(self.columns["id"][self.begin % self.capacity])]
        self.begin += 1

    def rows(self, numbers: NDArray[np.int64], verticals: NDArray[Any], first: NDArray[Any], at: NDArray[Any]) -> Rows:
        """These examples as joined rows. verticals, first, at (when it was released): a value a row."""
        place = self.place(numbers)
        of = {name: column[place] for name, column in self.columns.items()}
        scored = of["state"] == SCORED
        logit = np.where(scored, of["logit"], 0).astype(np.float32)
        probability = np.where(scored, 1 / (1 + np.exp(-logit.astype(np.float64))), 0).astype(np.float32)
        found = {name: of[name] for name in ("id", "time", "label", "version", "trained_until", "scored_at")}
        found |= {name: of[name] for name in ("embedding", "ids", "bag")}
        return Rows(
            released=at, verticals=verticals, first=first, scored=scored, logit=logit, probability=probability, **found
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is held, oldest first, to go on from."""
        place = self.place(np.arange(self.begin, self.end))
        return {name: column[place] for name, column in self.columns.items()}

    def restore(self, begin: int, arrays: dict[str, NDArray[Any]]) -> None:
        """The reverse; what was under way is waiting again."""
        self.begin, self.end = begin, begin + len(arrays["id"])
        place = self.place(np.arange(self.begin, self.end))
        for name, column in self.columns.items():
            column[place] = arrays[name]
        state = self.columns["state"]
        state[state == UNDER_WAY] = WAITING
        self.number = {int(id): self.begin + i for i, id in enumerate(arrays["id"])}
