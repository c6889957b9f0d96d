"""Who holds the shards and counts. Here: one process. On machines that may fail: ray_counters.py; both answer alike."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from examples.audience.reach.answer import Answer, Groups
from examples.audience.reach.calibrate import Cells
from examples.audience.reach.model import Model
from examples.audience.reach.schema import AudienceError
from examples.audience.reach.shard import Ask, Shard
from examples.audience.reach.store import Manifest, load, read_model

TURNS = 4
"""Times that a sample is read which is exchanged for another meanwhile."""


class Counters(Protocol):
    """Answers of all shards that answer in time."""

    manifest: Manifest
    model: Model
    lost: dict[str, str]
    """Shards that cannot be read, and why."""

    def ask(self, asks: Sequence[Ask], seconds: float) -> dict[str, list[Answer | Cells]]:
        """Shard -> an answer to each of `asks`; a shard that is lost or late is not there."""
        ...

    def groups(self) -> dict[str, Groups]:
        """Shard -> what it holds, of those that can be reached now."""
        ...

    def close(self) -> None: ...


def read(folder: Path, manifest: Manifest, names: Iterable[str]) -> tuple[dict[str, Shard], dict[str, str]]:
    """The shards of that manifest, and why each of the others cannot be read."""
    shards, lost = {}, {}
    for name in names:
        try:
            shards[name] = Shard.read(folder, manifest, name)
        except AudienceError as error:
            lost[name] = str(error)
    return shards, lost


class Local:
    """All shards in this process. A shard that cannot be read is named in `lost`, and served without."""

    def __init__(self, folder: Path) -> None:
        for turn in range(TURNS):
            self.manifest = load(folder)
            try:
                self.model = read_model(folder, self.manifest)
                self.shards, self.lost = read(folder, self.manifest, self.manifest.shards)
            except AudienceError:
                if turn == TURNS - 1 or load(folder).identity == self.manifest.identity:
                    raise
            else:
                if not self.lost or load(folder).identity == self.manifest.identity:
                    break  # else a refresh came between the manifest and the shards
        if not self.shards:
            raise AudienceError(f"no shard of {folder} can be read: {next(iter(self.lost.values()), 'there is none')}")

    def ask(self, asks: Sequence[Ask], seconds: float) -> dict[str, list[Answer | Cells]]:
        found, until = {}, time.monotonic() + seconds
        for name, shard in self.shards.items():
            found[name] = [shard.answer(ask) for ask in asks]
            if time.monotonic() > until:
                break
        return found

    def groups(self) -> dict[str, Groups]:
        return {name: shard.groups(self.manifest.groups) for name, shard in self.shards.items()}

    def close(self) -> None:
        pass
