"""The teacher's snapshots: published whole, found by the time that they were, rotated, rolled back.

A snapshot is one safetensors file. `index.json` says which there are and is replaced in one step after the file is on
the disk, so a reader sees a snapshot whole or not at all. Which one scores is a matter of the stream's time, not of the
wall's: a run that is repeated finds the same one.

The paper's publisher stands on ZooKeeper ([C]); here it is a folder that scorers share.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from examples.exfm import files
from examples.exfm.errors import ExfmError

INDEX = "index.json"


class SnapshotError(ExfmError):
    """A snapshot that cannot be used."""


@dataclass(frozen=True)
class Snapshot:
    """published: the stream's time when it was; trained_until: that of what it had learned last by then; withdrawn: not
    to be used any more."""

    version: int
    published: int
    trained_until: int
    checksum: str
    withdrawn: bool = False

    @property
    def name(self) -> str:
        return f"teacher-{self.version:06}.safetensors"


@dataclass(frozen=True)
class Snapshots:
    """A folder of them. keep: how many `rotate` leaves."""

    folder: Path
    keep: int = 8

    def index(self) -> list[Snapshot]:
        """All that are published, oldest first."""
        path = self.folder / INDEX
        try:
            return [Snapshot(**each) for each in json.loads(path.read_text(encoding="utf-8"))]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError) as error:
            raise SnapshotError(f"{path} cannot be read: {error}; the next snapshot begins a new one") from None

    def publish(
        self, version: int, published: int, trained_until: int, tensors: Mapping[str, Tensor], said: Any
    ) -> Snapshot:
        """Make a snapshot known. Of a version that is known already, this one counts from now on."""
        content = files.packed(tensors, {"said": json.dumps(said)})
        made = Snapshot(version, published, trained_until, files.checksum(content))
        files.write(self.folder / made.name, content)
        others = [each for each in self._readable() if each.version != version]
        self._write([*others, made])
        return made

    def at(self, time: int) -> Snapshot | None:
        """The newest that had been published by then and is not withdrawn. Later ones may be there: of a run that was
        lost and is being repeated."""
        known = [each for each in self.index() if each.published <= time and not each.withdrawn]
        return max(known, key=_age, default=None)

    def checksum(self, version: int) -> str | None:
        """Of a snapshot; None if it is not there."""
        return next((each.checksum for each in self._readable() if each.version == version), None)

    def _readable(self) -> list[Snapshot]:
        """The index; none if it is damaged."""
        try:
            return self.index()
        except SnapshotError:
            return []

    def read(self, version: int) -> tuple[dict[str, Tensor], Any]:
        """Weights, and what the publisher said of them. Raises SnapshotError for one that is gone or damaged."""
        known = {each.version: each for each in self.index()}
        if version not in known:
            raise SnapshotError(f"{self.folder} has no snapshot {version}; it has {sorted(known) or 'none'}")
        path = self.folder / known[version].name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise SnapshotError(f"{path} cannot be read: {error.strerror}; publish it again or roll back") from None
        if files.checksum(content) != known[version].checksum:
            raise SnapshotError(f"{path} is not what was published; publish it again or roll back")
        size = int.from_bytes(content[:8], "little")
        said = json.loads(content[8 : 8 + size])["__metadata__"]["said"]
        return safetensors.torch.load(content), json.loads(said)

    def roll_back(self, version: int) -> Snapshot:
        """Withdraw every newer one. What was scored stays scored; nothing more is scored by them."""
        known = self.index()
        if version not in {each.version for each in known}:
            raise SnapshotError(f"there is no snapshot {version} to go back to; {[each.version for each in known]}")
        self._write([replace(each, withdrawn=each.withdrawn or each.version > version) for each in known])
        return next(each for each in known if each.version == version)

    def rotate(self, time: int) -> list[Snapshot]:
        """Delete the old ones; which. Kept are the last `keep` of those published by `time`, and all later ones, which
        a run that was set back to `time` will ask for again."""
        known = self._readable()
        past = sorted((each for each in known if each.published <= time), key=_age)
        gone = past[: -self.keep]
        if gone:
            self._write([each for each in known if each not in gone])
            for each in gone:
                (self.folder / each.name).unlink(missing_ok=True)
        return gone

    def _write(self, known: list[Snapshot]) -> None:
        files.write_json(self.folder / INDEX, [asdict(each) for each in sorted(known, key=lambda each: each.version)])


def _age(snapshot: Snapshot) -> tuple[int, int]:
    return snapshot.published, snapshot.version
