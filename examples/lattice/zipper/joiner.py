"""Joins labels to impressions and releases each when its own window closes.

That an impression waits for its own window and no longer is our reading of the paper [I]: it makes the stream a mix of
fresh and of complete labels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from examples.lattice.zipper.identity import check, described
from examples.lattice.zipper.log import Log, Reader
from examples.lattice.zipper.windows import Windows

WAITS = ("ready", "rows", "heads", "converted")


@dataclass(frozen=True, eq=False)
class Released:
    """Samples in the order in which they become ready.

    ready   (n,) float64  seconds: when the label was there
    rows    (n,) int64    the impressions' rows in the log
    heads   (n,) int64    the windows they are labelled by
    labels  (n,) float32
    later   (n,) bool     True for a positive that follows the same impression's negative (FNW, ES-DFM)
    delays  (n,) float64  seconds from the impression to its conversion, inf where none was there when it was ready
    """

    ready: Tensor
    rows: Tensor
    heads: Tensor
    labels: Tensor
    later: Tensor
    delays: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice | Tensor) -> Released:
        return Released(*(getattr(self, name)[part] for name in COLUMNS))


COLUMNS = tuple(column.name for column in fields(Released))


class Joiner:
    """Reads the log by the clock. `advance(now)` gives the samples whose window closed since the last call: each
    impression once, labelled by the conversions that the reader has handed out by then."""

    def __init__(self, log: Log, windows: Windows) -> None:
        self._log, self._reader, self._windows = log, Reader(log), windows
        self._ready = torch.empty(0, dtype=torch.float64)  # of the impressions that wait, with their rows and windows
        self._rows = torch.empty(0, dtype=torch.int64)
        self._heads = torch.empty(0, dtype=torch.int64)
        self._converted = torch.empty(0, dtype=torch.float64)  # when, as far as is known; inf: not yet

    def advance(self, now: float) -> Released:
        rows, of, converted = self._reader.advance(now)
        keys, times = self._reader.impressions(rows)
        heads = self._windows.assign(keys, times)
        new = torch.arange(rows.start, rows.stop)
        self._ready = torch.cat([self._ready, times + torch.tensor(self._windows.seconds, dtype=torch.float64)[heads]])
        self._rows, self._heads = torch.cat([self._rows, new]), torch.cat([self._heads, heads])
        self._converted = torch.cat([self._converted, torch.full((len(new),), float("inf"), dtype=torch.float64)])
        self._note(of, converted)
        due = self._ready <= now
        found = self._released(due)
        waits = ~due
        self._ready, self._rows = self._ready[waits], self._rows[waits]
        self._heads, self._converted = self._heads[waits], self._converted[waits]
        return found

    @property
    def position(self) -> tuple[float, Tensor, Tensor, Tensor, Tensor]:
        """All that `advance` changes: the clock, and of what waits when it is ready, rows, windows, conversions."""
        return self._reader.clock, self._ready, self._rows, self._heads, self._converted

    @position.setter
    def position(self, position: tuple[float, Tensor, Tensor, Tensor, Tensor]) -> None:
        self._reader.clock, self._ready, self._rows, self._heads, self._converted = position

    def state(self) -> dict[str, Tensor]:
        """All that a new joiner of the same log and windows needs to go on, and which log and windows these are."""
        clock, *waits = self.position
        position = zip(WAITS, waits, strict=True)
        return {
            "clock": torch.tensor([clock], dtype=torch.float64),
            **dict(position),
            **described(self._identity(clock)),
        }

    def resume(self, state: dict[str, Tensor]) -> None:
        """Goes on from a state of the same windows and of the same log, which may have grown since at its end."""
        clock = float(state["clock"])
        check(state, self._identity(clock))
        ready, rows, heads, converted = (state[name] for name in WAITS)
        self.position = clock, ready, rows, heads, converted

    def _identity(self, clock: float) -> dict[str, str]:
        return {"windows": self._windows.identity, "log": self._log.identity(clock)}

    def _note(self, of: Tensor, converted: Tensor) -> None:
        """Writes down conversions of impressions that still wait (rows wait in order, so a search finds them)."""
        place = torch.searchsorted(self._rows, of)
        there = place < len(self._rows)
        there[there.clone()] = self._rows[place[there]] == of[there]
        self._converted[place[there]] = converted[there]

    def _released(self, due: Tensor) -> Released:
        ready, rows, heads = self._ready[due], self._rows[due], self._heads[due]
        converted = self._converted[due] <= ready
        delays = (self._converted[due] - self._log.times[rows]).where(converted, float("inf"))
        order = torch.argsort(ready, stable=True)
        return Released(ready, rows, heads, converted.float(), torch.zeros_like(converted), delays)[order]
