"""DAS, the data augmentation system (arXiv 2502.17494 [B]): while a row waits for its label, the teacher scores it.

    push      events come in: examples wait, labels find them
    score     each example goes to the scorers once, whichever verticals log it: at once, or, `late`, with its label
    release   a labelled row goes on, with its score if there is one

A row waits for nothing but its label: a score that is late, lost, or not a number is left out and counted. Memory is
bounded: examples by the ring, labels without an example by `orphans`, batches under way by the scorers' limit. Where it
is used up, reading stops until scorers have answered; if that does not help, the oldest example goes, and is counted.

In a replay (`patience` None) rows wait for scores that are under way, however long, so a run that is repeated gives the
same rows in the same order with the same scores. Live, they wait `patience` seconds at most.
"""

from __future__ import annotations

import time as wall
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.exfm.counters import Counters
from examples.exfm.das.orphans import Orphans
from examples.exfm.das.rows import Rows, joined
from examples.exfm.das.scorers import Batch, Scored, Scorers
from examples.exfm.das.snapshots import Snapshot
from examples.exfm.das.waiting import SCORED, UNDER_WAY, UNSCORED, WAITING, Waiting
from examples.exfm.errors import ExfmError
from examples.exfm.stream.clean import clean
from examples.exfm.stream.events import IMPRESSION, Events, Schema

HOUR = 3600


@dataclass(frozen=True)
class Settings:
    """window: seconds after which an example is forgotten; its label has to come before. capacity: examples held;
    orphans: labels held that came before their example; tolerance: seconds that a sender's clock may be ahead; batch:
    examples scored together; delay: seconds that the teacher in use lags behind the stream; late: score an example when
    its label has come, by a teacher that has learned more by then, and none whose label never comes; patience: seconds
    that a labelled row waits for its score, None for as long as it takes."""

    window: int = 49 * HOUR
    capacity: int = 1 << 16
    orphans: int = 1 << 12
    tolerance: int = HOUR
    batch: int = 512
    delay: int = 0
    late: bool = False
    patience: float | None = None


class Das:
    """One service for all verticals. choose: the stream's time -> the snapshot to score by, None if there is none."""

    def __init__(
        self,
        schema: Schema,
        scorers: Scorers,
        choose: Callable[[int], Snapshot | None],
        embedding: int,
        settings: Settings | None = None,
        counters: Counters | None = None,
    ) -> None:
        self.schema, self.scorers, self.choose = schema, scorers, choose
        self.settings = settings or Settings()
        self.counters = counters if counters is not None else Counters()
        self.waiting = Waiting(schema, self.settings.capacity, embedding)
        self.now = 0
        self.to_score: deque[int] = deque()
        self.under_way: dict[int, tuple[NDArray[np.int64], Snapshot, int]] = {}  # numbers, by what, sent when
        self.batches = 0
        self.ready: deque[tuple[int, int, bool, int]] = deque()  # number, verticals, first, when
        self.ready_numbers: set[int] = set()
        self.orphans = Orphans(self.settings.orphans)
        self.out: list[Rows] = []

    def push(self, events: Events) -> None:
        """Take a chunk in. What it releases is had by `release`."""
        events = clean(events, self.schema, self.counters, self.now, self.settings.tolerance)
        kinds, ids, times, logged = (getattr(events, n).tolist() for n in ("kind", "id", "time", "logged"))
        verticals, labels = events.vertical.tolist(), events.label.tolist()
        for i in range(len(events)):
            self.now = logged[i]
            self._expire()
            if kinds[i] == IMPRESSION:
                self._shown(ids[i], times[i], verticals[i], events.ids[i], events.bag[i])
            else:
                self._told(ids[i], labels[i])
        self._submit(whole=True)

    def release(self) -> Rows:
        """The rows that are ready, in the order in which their labels came."""
        self._settle()
        parts, self.out = self.out, []
        return joined(parts) if parts else self.waiting.rows(*(np.zeros(0, kind) for kind in ("i8", "i8", "?", "i8")))

    def _shown(self, id: int, time: int, vertical: int, ids: NDArray[Any], bag: NDArray[Any]) -> None:
        number = self.waiting.number.get(id)
        if number is not None:
            self._shown_again(number, vertical)
            return
        if time < self.now - self.settings.window:
            self.counters.add("late")
            return
        if self.waiting.full:
            self._make_room()
        number = self.waiting.add(id, time, self.now, vertical, ids, bag)
        self.counters.add("examples")
        if not self.settings.late:
            self.to_score.append(number)
        if (label := self.orphans.take(id)) is not None:
            self.counters.add("label_first")
            self._told(id, label)

    def _shown_again(self, number: int, vertical: int) -> None:
        """Another vertical's row of an example, or a duplicate."""
        place, columns = self.waiting.place(number), self.waiting.columns
        held = int(columns["verticals"][place])
        if held >> vertical & 1:
            self.counters.add("duplicate")
            return
        columns["verticals"][place] = held | 1 << vertical
        if not np.isnan(columns["label"][place]):
            self._is_ready(number, 1 << vertical, first=False)

    def _told(self, id: int, label: float) -> None:
        number = self.waiting.number.get(id)
        if number is None:  # too early, or too late
            if lost := self.orphans.add(id, label, self.now):
                self.counters.add(lost)
            return
        place, columns = self.waiting.place(number), self.waiting.columns
        if not np.isnan(columns["label"][place]):
            self.counters.add("duplicate_label")
            return
        columns["label"][place] = label
        if self.settings.late:
            self.to_score.append(number)
        self._is_ready(number, int(columns["verticals"][place]), first=True)

    def _is_ready(self, number: int, verticals: int, first: bool) -> None:
        self.ready.append((number, verticals, first, self.now))
        self.ready_numbers.add(number)

    def _expire(self) -> None:
        """Forget what is older than the window."""
        waiting, limit = self.waiting, self.now - self.settings.window
        logged = waiting.columns["logged"]
        while waiting.begin < waiting.end and logged[waiting.begin % waiting.capacity] < limit:
            self._forget("unlabelled")
        self.counters.add("label_alone", self.orphans.expire(limit))

    def _make_room(self) -> None:
        """The ring is full: let labelled rows go on, then let the oldest go."""
        self.counters.add("back_pressure")
        self._settle()
        self._forget("evicted")

    def _forget(self, name: str) -> None:
        """Drop the oldest; `name` counts one that was never released, and says why."""
        waiting = self.waiting
        if waiting.begin in self.ready_numbers:
            self._settle()
        released = not np.isnan(waiting.columns["label"][waiting.begin % waiting.capacity])
        if not released:
            self.counters.add(name)
        elif name == "evicted":
            self.counters.add("forgotten_early")  # a duplicate of it would be taken for new
        waiting.drop()

    def _submit(self, whole: bool) -> None:
        """Send what is to be scored; whole: full batches only. Waits for scorers that are full, as long as
        `patience`."""
        size = self.settings.batch
        until = self._until()
        while self.to_score and self.to_score[0] < self.waiting.begin:
            self.to_score.popleft()  # forgotten
        while len(self.to_score) >= (size if whole else 1):
            while self.scorers.full:
                left = self._left(until)
                if left is not None and left <= 0:
                    return  # they stay in the queue
                self._collect(left)
            numbers = np.array([self.to_score.popleft() for _ in range(min(size, len(self.to_score)))])
            numbers = numbers[numbers >= self.waiting.begin]
            numbers = numbers[self.waiting.columns["state"][self.waiting.place(numbers)] == WAITING]
            if len(numbers):
                self._send(numbers)

    def _send(self, numbers: NDArray[np.int64]) -> None:
        place, columns = self.waiting.place(numbers), self.waiting.columns
        try:
            snapshot, why = self.choose(self.now - self.settings.delay), ""
        except ExfmError as error:
            snapshot, why = None, str(error)
        if snapshot is None:
            columns["state"][place] = UNSCORED
            self.counters.add("no_teacher", len(numbers), why)
            return
        columns["state"][place] = UNDER_WAY
        self.under_way[self.batches] = (numbers, snapshot, self.now)
        self.scorers.submit(Batch(self.batches, snapshot.version, columns["ids"][place], columns["bag"][place]))
        self.batches += 1
        self.counters.add("sent", len(numbers))

    def _collect(self, seconds: float | None) -> None:
        for done in self.scorers.collect(seconds):
            self._join(done)

    def _join(self, done: Scored) -> None:
        """A batch's scores to their examples."""
        numbers, snapshot, sent = self.under_way.pop(done.number)
        self.counters.add("teacher_calls", done.calls)
        columns = self.waiting.columns
        held = (numbers >= self.waiting.begin) & (columns["state"][self.waiting.place(numbers)] == UNDER_WAY)
        self.counters.add("score_too_late", int((~held).sum()))
        place = self.waiting.place(numbers[held])
        if done.told is not None:
            self.counters.take_in(done.told)
        why = done.error or done.misshapen(len(numbers), columns["embedding"].shape[1])
        if why or done.logit is None or done.embedding is None:
            columns["state"][place] = UNSCORED
            self.counters.add("scorer_failed", len(place), why)
            return
        logit = done.logit[held]
        right = np.isfinite(logit) & np.isfinite(done.embedding[held]).all(1)
        wrong = int((~right).sum())
        self.counters.add("score_not_finite", wrong, f"{wrong} by version {snapshot.version}")
        columns["state"][place] = np.where(right, SCORED, UNSCORED)
        columns["logit"][place] = np.where(right, logit, 0)
        columns["embedding"][place] = np.where(right[:, None], done.embedding[held], 0)
        columns["version"][place], columns["trained_until"][place] = snapshot.version, snapshot.trained_until
        columns["scored_at"][place] = sent

    def _settle(self) -> None:
        """Move every ready row to `out`, when its score is there or there will be none in time."""
        if not self.ready:
            return
        state, place = self.waiting.columns["state"], self.waiting.place
        numbers = np.array([each[0] for each in self.ready])
        if (state[place(numbers)] == WAITING).any():
            self._submit(whole=False)
        until = self._until()
        while self.under_way and np.isin(state[place(numbers)], (WAITING, UNDER_WAY)).any():
            left = self._left(until)
            if left is not None and left <= 0:
                break
            self._collect(left)
        missing = place(numbers[np.isin(state[place(numbers)], (WAITING, UNDER_WAY))])
        self.counters.add("score_missing", len(missing))
        state[missing] = UNSCORED  # for good: a later score would know the label
        columns = [np.array(column) for column in zip(*self.ready, strict=True)]
        rows = self.waiting.rows(*columns)
        self.ready.clear()
        self.ready_numbers.clear()
        self.counters.add("rows", len(rows))
        self.counters.add("rows_without_score", int((~rows.scored).sum()))
        self.out.append(rows)

    def _until(self) -> float | None:
        patience = self.settings.patience
        return None if patience is None else wall.monotonic() + patience

    def _left(self, until: float | None) -> float | None:
        return None if until is None else until - wall.monotonic()

    def drain(self) -> None:
        """Wait for all that is under way, as long as `patience`: before a checkpoint, which then holds it all."""
        until = self._until()
        while self.under_way and ((left := self._left(until)) is None or left > 0):
            self._collect(left)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything that is held, to go on from. Only after `release`."""
        cursor = np.array([self.now, self.waiting.begin, self.batches], np.int64)
        return {**self.waiting.arrays(), **self.orphans.arrays(), "cursor": cursor}

    def restore(self, arrays: dict[str, NDArray[Any]]) -> None:
        """The reverse. What was under way is scored again."""
        self.now, begin, self.batches = (int(each) for each in arrays["cursor"])
        self.waiting.restore(begin, arrays)
        self.orphans.restore(arrays)
        state = self.waiting.columns["state"]
        numbers = range(self.waiting.begin, self.waiting.end)
        waits = deque(number for number in numbers if state[self.waiting.place(number)] == WAITING)
        label = self.waiting.columns["label"]
        late = self.settings.late
        self.to_score = deque(n for n in waits if not late or not np.isnan(label[self.waiting.place(n)]))
