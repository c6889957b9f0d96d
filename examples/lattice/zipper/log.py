"""An event-time log: impressions and conversions in the order in which they happened, and a reader with a clock.

Whoever trains on delayed labels gets events from a `Reader` only. It hands out what happened up to its clock, each
event once, so what has not happened yet cannot be asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from examples.lattice.data import DataError
from examples.lattice.files import whole
from examples.lattice.zipper.identity import checksum

ARRAYS = {
    "times": (torch.float64, ()),
    "keys": (torch.int64, (2,)),
    "converted": (torch.float64, ()),
    "of": (torch.int64, ()),
}
"""Columns of a log: their type, and what a row has."""


@dataclass(frozen=True, eq=False)
class Log:
    """N impressions and C conversions.

    times      (N,) float64  seconds, never decreasing; an impression's row number is its place here
    keys       (N, 2) int64  user and item
    converted  (C,) float64  seconds, never decreasing
    of         (C,) int64    the impression that converted; one converts at most once
    """

    times: Tensor
    keys: Tensor
    converted: Tensor
    of: Tensor

    def __post_init__(self) -> None:
        for name, (dtype, row) in ARRAYS.items():
            _is(getattr(self, name), name, dtype, row)
        _finite(self.times, "impression", "was made")
        _finite(self.converted, "conversion", "came")
        if bool((self.times.diff() < 0).any()) or bool((self.converted.diff() < 0).any()):
            raise DataError("a log is in the order of time: sort impressions and conversions first")
        if len(self.times) != len(self.keys) or len(self.converted) != len(self.of):
            raise DataError(
                f"{len(self.times)} impressions have {len(self.keys)} keys, {len(self.converted)} conversions "
                f"{len(self.of)} impressions: expected one each"
            )
        if len(self.of) and (bool((self.of < 0).any()) or int(self.of.max()) >= len(self.times)):
            raise DataError(f"a conversion names an impression that is not among the {len(self.times)} of the log")
        if len(self.of.unique()) < len(self.of) or bool((self.converted < self.times[self.of]).any()):
            raise DataError("an impression converts twice, or before it was made")

    def __len__(self) -> int:
        return len(self.times)

    def until(self, now: float) -> Log:
        """The log as it stood at `now`."""
        seen, there = self.times <= now, self.converted <= now
        return Log(self.times[seen], self.keys[seen], self.converted[there], self.of[there])

    def delays(self) -> Tensor:
        """(N,) seconds from impression to conversion, inf where the log has none: what only the future knows."""
        found = torch.full((len(self),), float("inf"), dtype=torch.float64)
        found[self.of] = self.converted - self.times[self.of]
        return found

    def identity(self, now: float) -> str:
        """How much the log held at `now`, and the checksum of it: what comes later does not change it."""
        seen, there = (int(torch.searchsorted(events, now, right=True)) for events in (self.times, self.converted))
        of = checksum(self.times[:seen], self.keys[:seen], self.converted[:there], self.of[:there])
        return f"{seen} impressions and {there} conversions until {now:g} s with checksum {of}"

    def save(self, path: Path) -> None:
        """Written whole or not at all."""
        with whole(path) as beside:
            save_file(apart({name: getattr(self, name) for name in ARRAYS}), beside)

    @staticmethod
    def load(path: Path) -> Log:
        if not path.is_file():
            raise DataError(f"{path} is missing: Log.save writes it")
        found = load_file(path)
        if set(found) != set(ARRAYS):
            raise DataError(f"{path} holds {', '.join(sorted(found))}; a log holds {', '.join(sorted(ARRAYS))}")
        return Log(**found)


def log_of(times: Tensor, keys: Tensor, delays: Tensor) -> Log:
    """A log of impressions with known delays (inf: never), one each; `times` in order. Both may be of any type."""
    if delays.shape != times.shape:
        raise DataError(f"expected one delay an impression, got {tuple(delays.shape)} for {tuple(times.shape)}")
    wrong = (delays.isnan() | (delays < 0)).nonzero().flatten().tolist()
    if wrong:
        raise DataError(
            f"row {wrong[0]} converts after {float(delays[wrong[0]])} seconds: expected 0 or more, or inf for never"
        )
    of = delays.isfinite().nonzero().squeeze(1)
    converted = times.double()[of] + delays[of]
    order = torch.argsort(converted, stable=True)
    return Log(times.double(), keys, converted[order], of[order])


def apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same values, none in another's memory, as safetensors wants them: of tied parameters each name has a copy."""
    found, taken = {}, set()
    for name, value in tensors.items():
        memory = value.untyped_storage().data_ptr()
        found[name] = value.clone(memory_format=torch.contiguous_format) if memory in taken else value.contiguous()
        taken.add(memory)
    return found


def _is(column: Tensor, name: str, dtype: torch.dtype, row: tuple[int, ...]) -> None:
    """Numbers of another type are rounded or fail later; keys that lie otherwise are mixed from several rows."""
    if column.dtype != dtype or column.dim() == 0 or column.shape[1:] != row:
        raise DataError(
            f"{name} of the log: expected {dtype} of shape ({', '.join(['rows', *map(str, row)])}), "
            f"got {column.dtype} of shape {tuple(column.shape)}"
        )


def _finite(seconds: Tensor, what: str, did: str) -> None:
    wrong = (~seconds.isfinite()).nonzero().flatten().tolist()
    if wrong:
        raise DataError(
            f"{what} {wrong[0]} {did} at {float(seconds[wrong[0]])}: expected seconds, which are finite; leave it out"
        )


def before(time: float) -> float:
    """The last moment before `time`: a clock that stands there has seen nothing of `time` itself."""
    return math.nextafter(time, -math.inf)


class Reader:
    """Follows a log by the clock: every event once, none before its time."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.clock = float("-inf")

    def advance(self, now: float) -> tuple[slice, Tensor, Tensor]:
        """Moves the clock to `now`: rows of the new impressions, and the new conversions' impressions and times."""
        if not now >= self.clock:
            raise ValueError(f"the clock stands at {self.clock}, it cannot go back to {now}")
        seen, there = (
            torch.searchsorted(events, torch.tensor([self.clock, now], dtype=torch.float64), right=True).tolist()
            for events in (self._log.times, self._log.converted)
        )
        self.clock = now
        new = slice(*there)
        return slice(*seen), self._log.of[new], self._log.converted[new]

    def impressions(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Keys and times of rows that have been handed out."""
        if rows.stop > 0 and float(self._log.times[rows.stop - 1]) > self.clock:
            raise ValueError(f"row {rows.stop - 1} has not happened yet at {self.clock}")
        return self._log.keys[rows], self._log.times[rows]
