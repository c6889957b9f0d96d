"""Counters as Ray actors, on one machine or many. They hold nothing but what they can read again.

A restarted actor runs its constructor once more and reads its shards from their files; a call that was under way is
lost and its shards are missing from that answer alone (docs.ray.io, "Actor fault tolerance"). What is asked of one that
is being restarted waits for it, so no answer waits long for one when the others are there, and it is asked nothing
more until it has answered a ping: a dead machine makes few answers slow, and by little.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from examples.audience.reach.answer import Answer, Groups
from examples.audience.reach.calibrate import Cells
from examples.audience.reach.counters import read
from examples.audience.reach.schema import AudienceError
from examples.audience.reach.shard import Ask, Shard
from examples.audience.reach.store import load, read_model
from examples.audience.reach.together import Together

START = 300.0
"""Seconds that the counters may take to read their shards at the start."""
LATE = 0.15
"""Seconds, beside as many as the others took, that an answer waits for a counter after the others'."""
PING, PAUSE = 2.0, 0.1
"""Seconds that a counter has to answer a ping, and between two of them."""


@contextmanager
def started(address: str | None = None, **options: Any) -> Iterator[None]:
    """Ray, here or at an address. What is started here runs its processes as urgently as this one: by itself Ray gives
    way to all else on the machine (nice 15), and answers would wait for whatever runs beside them."""
    os.environ.setdefault("RAY_worker_niceness", "0")
    own = {"include_dashboard": False, **options} if address is None else options
    with ray.init(address, log_to_driver=False, **own):
        yield


@ray.remote(max_restarts=-1, max_task_retries=0, num_cpus=0)
class Counter:
    """Some shards in a process of their own."""

    def __init__(self, folder: str, identity: str, names: Sequence[str]) -> None:
        """identity: of the aggregator's sample, also when this process is started again. What lies in the folder may be
        another sample by then, and a mix of two is none: its shards are lost."""
        self.shards: dict[str, Shard] = {}
        try:
            manifest = load(Path(folder))
            if manifest.identity != identity:
                raise AudienceError(f"{folder} holds another sample now; start the server again to use it")
            self.shards, self.lost = read(Path(folder), manifest, names)
        except AudienceError as error:
            self.lost = dict.fromkeys(names, str(error))

    def ask(self, asks: Sequence[Ask]) -> tuple[dict[str, list[Answer | Cells]], dict[str, str]]:
        """The answers, and the shards that are lost."""
        return {name: [shard.answer(ask) for ask in asks] for name, shard in self.shards.items()}, self.lost

    def groups(self, count: int) -> dict[str, Groups]:
        return {name: shard.groups(count) for name, shard in self.shards.items()}

    def state(self) -> dict[str, str]:
        """The shards that could not be read, and why."""
        return self.lost


class OnRay:
    """`counters` actors that share the shards. Needs `ray.init()` before.

    name: of counters that outlive this process and are shared by all who name them, several aggregators say; counters
    of another sample have other names. Without one they are this process's own. late: see LATE.
    """

    def __init__(self, folder: Path, counters: int = 4, name: str | None = None, late: float = LATE) -> None:
        self.manifest = load(folder)
        self.model = read_model(folder, self.manifest)
        shards = list(self.manifest.shards)
        if not 1 <= counters <= len(shards):
            raise AudienceError(f"the sample has {len(shards)} shards: 1 to {len(shards)} counters, not {counters}")
        path = str(folder.resolve())
        made = f"{name}-{self.manifest.identity}-{counters}"
        self.actors = []
        for i in range(counters):
            options: dict[str, Any] = {"scheduling_strategy": "SPREAD"}
            if name is not None:
                options |= {"name": f"{made}-{i}", "lifetime": "detached", "get_if_exists": True, "namespace": "reach"}
            self.actors.append(Counter.options(**options).remote(path, self.manifest.identity, shards[i::counters]))  # type: ignore[attr-defined]
        self.lost: dict[str, str] = {}
        self._late = late
        self._out: set[int] = set()
        self._lock, self._closed = threading.Lock(), False
        self._together = Together(self._ask)
        for state in self._all(lambda actor: actor.state.remote(), START):
            self.lost.update(state)
        if len(self.lost) == len(shards):
            raise AudienceError(f"no shard of {folder} can be read: {next(iter(self.lost.values()))}")

    def ask(self, asks: Sequence[Ask], seconds: float) -> dict[str, list[Answer | Cells]]:
        return self._together.ask(asks, seconds)

    def _ask(self, asks: Sequence[Ask], seconds: float) -> dict[str, list[Answer | Cells]]:
        shared = ray.put(tuple(asks)) if len(asks) > 8 else tuple(asks)
        found = self._all(lambda actor: actor.ask.remote(shared), seconds, self._late)
        self.lost.update(_merged(lost for _, lost in found))  # one that was started again may have lost its own
        return _merged(answers for answers, _ in found)

    def groups(self) -> dict[str, Groups]:
        return _merged(self._all(lambda actor: actor.groups.remote(self.manifest.groups), START))

    def close(self) -> None:
        self._closed = True
        for actor in self.actors:
            ray.kill(actor)

    def _all(self, call: Callable[[Any], Any], seconds: float, late: float = math.inf) -> list[Any]:
        """What the actors answer in time, and no more than `late` after the others; of the rest nothing."""
        began, found = time.monotonic(), []
        with self._lock:
            asked = [i for i in range(len(self.actors)) if i not in self._out] or list(range(len(self.actors)))
        waiting: dict[Any, int] = {}
        for i in asked:
            try:
                waiting[call(self.actors[i])] = i
            except RayError:
                self._aside(i)  # its process is being restarted and its queue is full
        for reference in _in_time(list(waiting), began, seconds, late):
            i = waiting.pop(reference)
            try:
                found.append(ray.get(reference))
            except RayError:
                self._aside(i)  # it died under way; its shards are missing from this answer
        for i in waiting.values():
            self._aside(i)
        return found

    def _aside(self, number: int) -> None:
        """Do not wait for this counter until it answers a ping."""
        with self._lock:
            if number in self._out:
                return
            self._out.add(number)
        threading.Thread(target=self._back, args=(number,), daemon=True).start()

    def _back(self, number: int) -> None:
        while not self._closed:
            try:
                reference = self.actors[number].state.remote()
                if ray.wait([reference], timeout=PING)[0]:
                    ray.get(reference)
                    break
            except RayError:
                pass
            time.sleep(PAUSE)
        with self._lock:
            self._out.discard(number)


def _in_time(references: list[Any], began: float, seconds: float, late: float) -> list[Any]:
    """Those that are there within so many seconds, and soon enough after the others."""
    there: list[Any] = []
    count, pause = max(1, len(references) - 1), late
    while references and (left := began + seconds - time.monotonic()) > 0:
        some, references = ray.wait(references, num_returns=count, timeout=min(left, pause))
        there += some
        if there and not some:
            break
        count, pause = 1, late + time.monotonic() - began if there else math.inf
    return there


def _merged(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {name: answer for part in parts for name, answer in part.items()}


def on_ray(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterable[Any]:
    """The Map of `build` over Ray tasks, in the order of the calls; a task whose machine dies is run again."""
    task = ray.remote(max_retries=3)(function)
    return ray.get([task.remote(*call) for call in calls])
