"""What the baselines train on and when: each gives a schedule for a log, and `Replay` hands it out by the clock.

`single`, `immediate` and `elapsed` know at `ready` only what had happened by then, which a test holds for all but
`future`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from examples.lattice.zipper.identity import check, checksum, described
from examples.lattice.zipper.joiner import COLUMNS, Released
from examples.lattice.zipper.log import Log


def single(log: Log, window: float, head: int) -> Released:
    """Every impression when the window closes, labelled by it."""
    return _sorted(log.times + window, torch.arange(len(log)), _within(log.delays(), window), head)


def immediate(log: Log, attribution: float, head: int) -> Released:
    """Every impression at once as a negative, and once more as a positive when it converts: what FNW trains on."""
    return elapsed(log, 0.0, attribution, head)


def elapsed(log: Log, wait: float, attribution: float, head: int) -> Released:
    """Every impression after `wait`, labelled by what came until then, and once more as a positive if it converts
    later: what ES-DFM trains on."""
    delays = log.delays()
    first = _sorted(log.times + wait, torch.arange(len(log)), _within(delays, wait), head)
    late = ((delays > wait) & (delays <= attribution)).nonzero().squeeze(1)
    again = _sorted(log.times[late] + delays[late], late, delays[late], head, later=True)
    joined = Released(*(torch.cat([getattr(part, name) for part in (first, again)]) for name in COLUMNS))
    return joined[torch.argsort(joined.ready, stable=True)]


def future(log: Log, attribution: float, head: int, end: float = float("inf")) -> Released:
    """Every impression at once with the label it will have: no stream can do this; it is the mark to reach.

    end: when the log ends. Impressions whose window closes later are left out, as no log says what they become."""
    rows = (log.times + attribution <= end).nonzero().squeeze(1)
    return _sorted(log.times[rows], rows, _within(log.delays()[rows], attribution), head)


class Replay:
    """A schedule by the clock, each sample once; its state is its clock."""

    def __init__(self, schedule: Released) -> None:
        self._schedule = schedule
        self.clock = float("-inf")

    def advance(self, now: float) -> Released:
        if not now >= self.clock:
            raise ValueError(f"the clock stands at {self.clock}, it cannot go back to {now}")
        edges = torch.tensor([self.clock, now], dtype=torch.float64)
        start, end = torch.searchsorted(self._schedule.ready, edges, right=True).tolist()
        self.clock = now
        return self._schedule[start:end]

    @property
    def position(self) -> float:
        return self.clock

    @position.setter
    def position(self, clock: float) -> None:
        self.clock = clock

    def state(self) -> dict[str, Tensor]:
        return {
            "clock": torch.tensor([self.clock], dtype=torch.float64),
            **described(self._identity(self.clock)),
        }

    def resume(self, state: dict[str, Tensor]) -> None:
        """Goes on from a state of the same schedule, which may have grown since at its end."""
        clock = float(state["clock"])
        check(state, self._identity(clock))
        self.clock = clock

    def _identity(self, clock: float) -> dict[str, str]:
        seen = self._schedule[: int(torch.searchsorted(self._schedule.ready, clock, right=True))]
        of = checksum(*(getattr(seen, name) for name in COLUMNS))
        return {"schedule": f"{len(seen)} samples until {clock:g} s with checksum {of}"}


def _within(delays: Tensor, window: float) -> Tensor:
    """Delays as they are known when the window closes."""
    return delays.where(delays <= window, float("inf"))


def _sorted(ready: Tensor, rows: Tensor, known: Tensor, head: int, later: bool = False) -> Released:
    """known: delays, inf of what is released as a negative."""
    heads, again = torch.full_like(rows, head), torch.full((len(rows),), later)
    found = Released(ready.double(), rows, heads, known.isfinite().float(), again, known)
    return found[torch.argsort(found.ready, stable=True)]
