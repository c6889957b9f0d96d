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
from examples.lattice.ktap.store import UNANSWERED, Store, at_least_one, taken


@dataclass
class Counts:
    """What became of reads and writes.

    keys       asked for: answered, garbage, or neither where the store gave nothing in time
    answered   keys of which the store gave bytes, or said that there are none
    garbage    keys of which it gave anything else
    late       reads that did not come whole in time
    skipped    reads that were not tried
    errors     of reads and of writes; last_error is the last
    unwritten  values that were given and not taken
    """

    keys: int = 0
    answered: int = 0
    garbage: int = 0
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
        self.values: list[object] = [UNANSWERED] * len(keys)


class Guarded:
    """A `Store` whose reads take at most `deadline` seconds (and a thread's switch) and whose calls raise nothing."""

    def __init__(self, store: Store, deadline: float = 0.02, rest: float = 1.0, piece: int = 512) -> None:
        at_least_one("piece", piece)
        if not 0 <= deadline <= threading.TIMEOUT_MAX:  # nan is neither
            raise ValueError(f"a deadline is 0 seconds or more, and ends some time, got {deadline}")
        if not rest >= 0:
            raise ValueError(f"a rest is 0 seconds or more, got {rest}")
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
        return [value if isinstance(value, bytes) else None for value in self.answers(keys)]

    def answers(self, keys: Sequence[bytes]) -> list[object]:
        """What the store gave, None and garbage too, and UNANSWERED where it gave nothing in time."""
        self.counts.keys += len(keys)
        if time.monotonic() < self._closed_until or not self._busy.acquire(blocking=False):
            self.counts.skipped += 1
            return [UNANSWERED] * len(keys)
        read = _Read(keys)  # the worker gives `_busy` back when the store has answered, however late
        if not self._hand_over(read):
            return [UNANSWERED] * len(keys)
        if not read.done.wait(self.deadline):
            read.given_up = True
            self.counts.late += 1
        found = list(read.values)  # as they are now: the worker may go on
        given = [value for value in found if value is not UNANSWERED]
        garbage = sum(not (value is None or isinstance(value, bytes)) for value in given)
        self.counts.garbage += garbage
        self.counts.answered += len(given) - garbage
        return found

    def put(self, keys: Sequence[bytes], values: Sequence[bytes], ttl: float) -> int:
        """Writes in the caller's thread, which is the teacher's and may wait; a failure loses these values only, and
        the caller is told that none was taken."""
        count = 0
        try:
            count = taken(self.store.put(keys, values, ttl), len(keys), self.store)
        except (KeyboardInterrupt, SystemExit):  # they are for the caller's thread
            raise
        except BaseException as error:  # whatever a client library raises must not stop the teacher
            self._failed(error)
        self.counts.unwritten += len(keys) - count
        return count

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
            except BaseException as error:  # the same for who reads: without this thread the guard would be dead
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
        read.values[part] = values

    def _failed(self, error: BaseException) -> None:
        self.counts.errors += 1
        self.counts.last_error = f"{type(error).__name__}: {error}"
