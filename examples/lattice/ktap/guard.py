"""A store that never fails and never keeps anyone waiting: what it cannot give in time is a miss.

One thread of the guard talks to the store, about `piece` keys at a time. A read waits for it `deadline` seconds at most
and takes what has come by then; while the thread is still busy with an earlier read, or the store has just failed,
reads are misses at once. After a failure the store is left alone for `rest` seconds.

The deadline is on the store's answer. What `look_up` does with it in the caller's thread, making keys and decoding
records, comes on top: about 2 us a row (record.py), which no store can make longer.

The thread is started by the first read, in each process its own: after a fork the child reads on with a thread and
counts of its own.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from examples.lattice.ktap.forks import renew_in_children
from examples.lattice.ktap.store import Store


@dataclass
class Counts:
    """What became of reads and writes: keys asked for, answered in time, reads that did not come whole in time, reads
    not tried, errors."""

    keys: int = 0
    answered: int = 0
    late: int = 0
    skipped: int = 0
    errors: int = 0
    unwritten: int = 0
    last_error: str = ""


class _Read:
    def __init__(self, keys: Sequence[bytes]) -> None:
        self.keys = keys
        self.done = threading.Event()
        self.given_up = False
        self.answered = 0
        self.values: list[bytes | None] = [None] * len(keys)


class Guarded:
    """A `Store` whose reads take at most `deadline` seconds (and a thread's switch) and whose calls raise nothing."""

    def __init__(self, store: Store, deadline: float = 0.02, rest: float = 1.0, piece: int = 512) -> None:
        if piece < 1:
            raise ValueError(f"expected a piece of 1 key or more, got {piece}")
        self.store, self.deadline, self.rest, self.piece = store, deadline, rest, piece
        self.renew()
        renew_in_children(self)

    def renew(self) -> None:
        self.counts = Counts()
        self._closed_until = 0.0
        self._reads: queue.Queue[_Read | None] = queue.Queue()
        self._busy, self._starting = threading.Lock(), threading.Lock()
        self._thread: threading.Thread | None = None

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self.counts.keys += len(keys)
        if time.monotonic() < self._closed_until or not self._busy.acquire(blocking=False):
            self.counts.skipped += 1
            return [None] * len(keys)
        read = _Read(keys)  # the worker gives `_busy` back when the store has answered, however late
        if not self._hand_over(read):
            return [None] * len(keys)
        if not read.done.wait(self.deadline):
            read.given_up = True
            self.counts.late += 1
        self.counts.answered += read.answered
        return list(read.values)

    def put(self, keys: Sequence[bytes], values: Sequence[bytes], ttl: float) -> int:
        """Writes in the caller's thread, which is the teacher's and may wait; a failure loses these values only, and
        the caller is told that none was taken."""
        try:
            return self.store.put(keys, values, ttl)
        except Exception as error:  # whatever a client library raises must not stop the teacher
            self._failed(error)
            self.counts.unwritten += len(keys)
            return 0

    def close(self) -> None:
        """Ends the thread. A later read starts another."""
        with self._starting:
            if self._thread is not None:
                self._reads.put(None)
                self._thread = None

    def _hand_over(self, read: _Read) -> bool:
        """Gives the thread a read, and starts it before if there is none; False if this machine starts no more."""
        with self._starting:
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="ktap-reads", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    self._failed(error)
                    self._busy.release()
                    return False
                self._thread = thread
            self._reads.put(read)
            return True

    def _work(self) -> None:
        while (read := self._reads.get()) is not None:
            try:
                for start in range(0, len(read.keys), self.piece):
                    if read.given_up:
                        break
                    self._read(read, slice(start, start + self.piece))
            except Exception as error:  # the same for who reads
                self._failed(error)
                self._closed_until = time.monotonic() + self.rest
            finally:
                self._busy.release()
                read.done.set()

    def _read(self, read: _Read, part: slice) -> None:
        asked = read.keys[part]
        values = list(self.store.get(asked))
        if len(values) != len(asked):
            raise ValueError(f"asked for {len(asked)} keys, the store gave {len(values)} values")
        read.values[part] = [value if isinstance(value, bytes) else None for value in values]
        read.answered += len(values)

    def _failed(self, error: Exception) -> None:
        self.counts.errors += 1
        self.counts.last_error = f"{type(error).__name__}: {error}"
