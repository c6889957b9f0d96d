"""The teacher in the background: pairs go into a queue that never blocks, embeddings and logits into the store."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from examples.lattice.ktap.forks import renew_in_children
from examples.lattice.ktap.record import TeacherId, encode, key
from examples.lattice.ktap.store import Store, at_least_one, check_ttl, taken

HOUR = 3600.0
Score = Callable[[Sequence[tuple[int, int]]], tuple[Tensor, Tensor]]
"""(user, item) pairs to embeddings (B, width) and logits (B, tasks)."""


def write(
    store: Store,
    pairs: Sequence[tuple[int, int]],
    score: Score,
    clock: Callable[[], float],
    teacher: TeacherId,
    ttl: float = 6 * HOUR,
) -> int:
    """Scores these pairs, writes them for `ttl` seconds, and says how many were written: no row whose numbers are not
    finite, which nobody could read, and none that the store did not take.

    clock: gives the log's seconds; it is read when `score` has returned, because whatever happened until then may be in
    what it gave."""
    check_ttl(ttl)
    with torch.no_grad():
        embedding, logits = (each.float() for each in score(pairs))
    computed = clock()
    if [embedding.dim(), logits.dim(), len(embedding), len(logits)] != [2, 2, len(pairs), len(pairs)]:
        shapes = f"{tuple(embedding.shape)} and {tuple(logits.shape)}"
        raise ValueError(f"score gives a row of embedding and a row of logits a pair; of {len(pairs)} it gave {shapes}")
    if not math.isfinite(computed):
        raise ValueError(f"clock gives the log's seconds, got {computed}")
    sound = (embedding.isfinite().all(dim=1) & logits.isfinite().all(dim=1)).cpu()
    keys = [key(user, item, teacher) for (user, item), fine in zip(pairs, sound.tolist(), strict=True) if fine]
    values = encode(keys, embedding.cpu()[sound], logits.cpu()[sound], [computed] * len(keys), teacher)
    return taken(store.put(keys, values, ttl), len(keys), store)


class Background:
    """A thread, started by the first `ask`, that scores what it is given, `batch` pairs at a time.

    At most `most` pairs wait: of more, the oldest are dropped, which costs hits and nothing else. A pair that waits
    already is not queued twice; one that is through, written or not, can be asked for again. A child of `fork` has a
    thread, a queue and counts of its own; what waited is its parent's to score.

    written, unwritten, dropped: what became of pairs; failures: the last reasons for unwritten ones."""

    def __init__(
        self,
        store: Store,
        score: Score,
        clock: Callable[[], float],
        teacher: TeacherId,
        ttl: float = 6 * HOUR,
        batch: int = 256,
        most: int = 100_000,
    ) -> None:
        check_ttl(ttl)
        at_least_one("batch", batch)
        at_least_one("most", most)
        self._store, self._score, self._clock, self._teacher, self._ttl = store, score, clock, teacher, ttl
        self._batch, self._most = batch, most
        self.renew()
        renew_in_children(self)

    def renew(self) -> None:
        self._waiting: dict[tuple[int, int], None] = {}  # in the order of asking
        self._changed = threading.Condition()
        self._stopping = self._working = False
        self.written = self.unwritten = self.dropped = 0
        self.failures: deque[str] = deque(maxlen=10)
        self._thread: threading.Thread | None = None

    def ask(self, pairs: Sequence[tuple[int, int]]) -> None:
        with self._changed:
            if self._stopping:
                self.dropped += len(pairs)
                return
            self._start()
            for pair in pairs:
                self._waiting[pair] = None
            while len(self._waiting) > self._most:
                del self._waiting[next(iter(self._waiting))]
                self.dropped += 1
            self._changed.notify_all()

    def _start(self) -> None:
        if self._thread is not None:
            return
        thread = threading.Thread(target=self._work, name="ktap-teacher", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # this machine starts no more; the next `ask` tries again
            self.failures.append(f"{type(error).__name__}: {error}")
        else:
            self._thread = thread

    def idle(self, seconds: float) -> bool:
        """Waits until nothing is left to score; False if that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._working, seconds)

    def stop(self) -> None:
        """Ends the thread; what waits, and what is asked for later, is dropped."""
        with self._changed:
            self._stopping = True
            self.dropped += len(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if self._stopping:
                    return
                pairs = list(self._waiting)[: self._batch]
                for pair in pairs:
                    del self._waiting[pair]
                self._working = True
            written = 0
            try:
                written = write(self._store, pairs, self._score, self._clock, self._teacher, self._ttl)
                if written < len(pairs):
                    self.failures.append(f"{len(pairs) - written} of {len(pairs)} pairs: not finite, or not taken")
            except BaseException as error:  # whatever one bad batch raises, a CancelledError too, ends no teacher
                self.failures.append(f"{type(error).__name__}: {error}")
            self.written += written
            self.unwritten += len(pairs) - written
            with self._changed:
                self._working = False
                self._changed.notify_all()
