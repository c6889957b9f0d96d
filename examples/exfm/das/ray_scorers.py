"""Scorers as Ray actors, on one machine or many. They hold nothing but what they can read again.

A restarted actor runs its constructor once more and reads the snapshot that the next batch names. A batch that was
under way in an actor that died is sent again, `retries` times, which by default is half a minute; then its rows go on
without a score. What travels
is Ray's own wire; the arrays lie in it as they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError

from examples.exfm.das.scorers import Batch, Scored, Scorer, scored
from examples.exfm.errors import ExfmError

FIRST_WAIT, LAST_WAIT = 0.05, 2.0
"""Seconds before a batch is sent again: actors take a while to come back, and refuse at once until they have."""


@ray.remote(max_restarts=-1, max_task_retries=0, num_cpus=0)
class Actor:
    """A scorer in a process of its own."""

    def __init__(self, folder: str, prepare: Callable[..., Any] | None, threads: int) -> None:
        torch.set_num_threads(threads)
        self.scorer = Scorer(Path(folder), prepare)

    def score(self, batch: Batch) -> Scored:
        return scored(self.scorer, batch)


class OnRay:
    """`count` actors. Needs `ray.init()` before. limit: batches under way at a time; retries: of a batch whose actor
    died; prepare: as for a Scorer, a function that can be imported; resources: what an actor takes of its node, as
    Ray's nodes declare them."""

    def __init__(
        self,
        folder: Path,
        count: int = 2,
        limit: int = 8,
        retries: int = 20,
        prepare: Callable[..., Any] | None = None,
        threads: int | None = None,
        resources: Mapping[str, float] | None = None,
    ) -> None:
        threads = torch.get_num_threads() if threads is None else threads
        path = str(folder.resolve())
        made = Actor.options(resources=dict(resources or {}))  # type: ignore[attr-defined]
        self.actors = [made.remote(path, prepare, threads) for _ in range(count)]
        self.limit, self.retries = limit, retries
        self.under_way: dict[Any, tuple[Batch, int, int]] = {}  # reference -> batch, its actor, how often it was lost
        self.later: list[tuple[float, Batch, int]] = []  # when to send a batch again, how often it was lost
        self.failed: list[Scored] = []

    def submit(self, batch: Batch) -> None:
        if self.full:
            raise ExfmError(f"{self.limit} batches are under way already: collect before submitting more")
        self._send(batch, 0)

    def collect(self, seconds: float | None) -> list[Scored]:
        until = None if seconds is None else time.monotonic() + seconds
        while (self.under_way or self.later) and not self.failed:
            self._send_again()
            left = None if until is None else max(until - time.monotonic(), 0)
            found = self._answers(left)
            if found:
                return found
            if left == 0:
                break
        found, self.failed = self.failed, []
        return found

    @property
    def full(self) -> bool:
        return len(self.under_way) + len(self.later) >= self.limit

    def close(self) -> None:
        for actor in self.actors:
            ray.kill(actor)

    def _answers(self, seconds: float | None) -> list[Scored]:
        """What comes back within so long, or before a batch is to be sent again."""
        until = min((due - time.monotonic() for due, _, _ in self.later), default=None)
        known = [each for each in (seconds, until) if each is not None]
        limit = max(min(known), 0) if known else None
        if not self.under_way:
            time.sleep(limit or 0)
            return []
        done, _ = ray.wait(list(self.under_way), timeout=limit)
        return [each for reference in done if (each := self._answer(reference)) is not None]

    def _answer(self, reference: Any) -> Scored | None:
        """What an actor said; None if it died, and its batch will be sent again."""
        batch, _, lost = self.under_way.pop(reference)
        try:
            return ray.get(reference)
        except RayError as error:
            return self._lost(batch, lost, type(error).__name__)

    def _lost(self, batch: Batch, lost: int, why: str) -> Scored | None:
        """Send it again after a while, or give it up."""
        if lost >= self.retries:
            return Scored(batch.number, error=f"{why}, {lost + 1} times")
        self.later.append((time.monotonic() + min(FIRST_WAIT * 2**lost, LAST_WAIT), batch, lost + 1))
        return None

    def _send_again(self) -> None:
        now = time.monotonic()
        due, self.later = [e for e in self.later if e[0] <= now], [e for e in self.later if e[0] > now]
        for _, batch, lost in due:
            self._send(batch, lost)

    def _send(self, batch: Batch, lost: int) -> None:
        """To the actor that has least to do; after a loss to the next one."""
        load = [sum(1 for _, actor, _ in self.under_way.values() if actor == i) for i in range(len(self.actors))]
        order = sorted(range(len(load)), key=lambda i: (load[i], (i - batch.number - lost) % len(load)))
        for actor in order:
            try:
                self.under_way[self.actors[actor].score.remote(batch)] = (batch, actor, lost)
                return
            except RayError:
                continue  # it is being restarted and takes nothing
        given_up = self._lost(batch, lost, "no scorer takes batches")
        if given_up is not None:
            self.failed.append(given_up)
