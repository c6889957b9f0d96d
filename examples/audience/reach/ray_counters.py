"""Counters as Ray actors, on one machine or many. They hold nothing but what they can read again.

A restarted actor runs its constructor once more and reads its shards from their files; a call that was under way is
lost and its shards are missing from that answer alone (docs.ray.io, "Actor fault tolerance").
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from examples.audience.reach.answer import Answer, Groups
from examples.audience.reach.schema import AudienceError
from examples.audience.reach.shard import Ask, Shard
from examples.audience.reach.store import load, read_model

START = 300.0
"""Seconds that the counters may take to read their shards at the start."""


@ray.remote(max_restarts=-1, max_task_retries=0, num_cpus=0)
class Counter:
    """Some shards in a process of their own."""

    def __init__(self, folder: str, names: Sequence[str]) -> None:
        self.shards: dict[str, Shard] = {}
        self.lost: dict[str, str] = {}
        for name in names:
            try:
                self.shards[name] = Shard.read(Path(folder), name)
            except AudienceError as error:
                self.lost[name] = str(error)

    def ask(self, asks: Sequence[Ask]) -> dict[str, list[Answer]]:
        return {name: [shard.answer(ask) for ask in asks] for name, shard in self.shards.items()}

    def groups(self, count: int) -> dict[str, Groups]:
        return {name: shard.groups(count) for name, shard in self.shards.items()}

    def state(self) -> dict[str, str]:
        """The shards that could not be read, and why."""
        return self.lost


class OnRay:
    """`counters` actors that share the shards. Needs `ray.init()` before."""

    def __init__(self, folder: Path, counters: int = 4) -> None:
        self.manifest = load(folder)
        self.model = read_model(folder, self.manifest)
        names = list(self.manifest.shards)
        if not 1 <= counters <= len(names):
            raise AudienceError(f"the sample has {len(names)} shards: 1 to {len(names)} counters, not {counters}")
        path = str(folder.resolve())
        self.actors = [Counter.remote(path, names[i::counters]) for i in range(counters)]  # type: ignore[attr-defined]
        self.lost: dict[str, str] = {}
        for state in self._all(lambda actor: actor.state.remote(), START):
            self.lost.update(state)
        if len(self.lost) == len(names):
            raise AudienceError(f"no shard of {folder} can be read: {next(iter(self.lost.values()))}")

    def ask(self, asks: Sequence[Ask], seconds: float) -> dict[str, list[Answer]]:
        shared = ray.put(tuple(asks)) if len(asks) > 8 else tuple(asks)
        return _merged(self._all(lambda actor: actor.ask.remote(shared), seconds))

    def groups(self) -> dict[str, Groups]:
        return _merged(self._all(lambda actor: actor.groups.remote(self.manifest.groups), START))

    def close(self) -> None:
        for actor in self.actors:
            ray.kill(actor)

    def _all(self, call: Callable[[Any], Any], seconds: float) -> Iterable[Any]:
        """What the actors answer in time; of the others nothing."""
        until, waiting, found = time.monotonic() + seconds, [], []
        for actor in self.actors:
            try:
                waiting.append(call(actor))
            except RayError:
                continue  # the actor's process is being restarted and its queue is full
        while waiting and (left := until - time.monotonic()) > 0:
            done, waiting = ray.wait(waiting, timeout=left)
            for reference in done:
                try:
                    found.append(ray.get(reference))
                except RayError:
                    continue  # it died under way; its shards are missing from this answer
        return found


def _merged(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {name: answer for part in parts for name, answer in part.items()}


def on_ray(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterable[Any]:
    """The Map of `build` over Ray tasks, in the order of the calls; a task whose machine dies is run again."""
    task = ray.remote(max_retries=3)(function)
    return ray.get([task.remote(*call) for call in calls])
