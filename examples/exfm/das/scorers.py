"""Who runs the teacher. `Local` does in this process; ray_scorers.py has actors; both keep one contract.

A scorer holds no state that it cannot read again: a batch names the snapshot that it is to be scored by.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from examples.exfm import teacher
from examples.exfm.counters import Counters
from examples.exfm.das.snapshots import Snapshots
from examples.exfm.errors import ExfmError


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples to score by a snapshot: ids (N, fields), bag (N, most)."""

    number: int
    version: int
    ids: NDArray[np.int32]
    bag: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Scored:
    """A batch's logits (N,) and embeddings (N, E), or why there are none. calls: examples that the teacher gave scores
    for. told: what whoever runs the teacher counted since the last batch."""

    number: int
    logit: NDArray[np.float32] | None = None
    embedding: NDArray[np.float16] | None = None
    error: str = ""
    calls: int = 0
    told: Counters | None = None

    def misshapen(self, count: int, width: int) -> str:
        """Why these are no scores of so many examples, with embeddings of that width; "" if they are."""
        found, wanted = (np.shape(self.logit), np.shape(self.embedding)), ((count,), (count, width))
        return "" if found == wanted else f"logits and embeddings are {found}; expected {wanted}"


class Scorers(Protocol):
    def submit(self, batch: Batch) -> None:
        """Take a batch. Only if not `full`."""
        ...

    def collect(self, seconds: float | None) -> list[Scored]:
        """What has come back; waits up to `seconds` for something if anything is under way, None: as long as it
        takes."""
        ...

    @property
    def full(self) -> bool:
        """Whether another batch has to wait: what bounds the memory of what is under way."""
        ...

    def close(self) -> None: ...


class Scores(Protocol):
    """A teacher with its snapshots: a Scorer, or anything of yours."""

    def score(self, version: int, ids: NDArray[np.int32], bag: NDArray[np.int32]) -> tuple[NDArray, NDArray]:
        """Logits (N,) and embeddings (N, E) by that snapshot."""
        ...


def scored(scorer: Scores, batch: Batch) -> Scored:
    """A batch's scores, or why there are none: whatever goes wrong in a teacher costs scores, and no rows."""
    try:
        logit, embedding = scorer.score(batch.version, batch.ids, batch.bag)
        logit, embedding = np.asarray(logit, np.float32), np.asarray(embedding, np.float16)
        done = Scored(batch.number, logit, embedding, calls=len(logit))
    except ExfmError as error:
        done = Scored(batch.number, error=str(error))
    except Exception as error:
        done = Scored(batch.number, error=f"{type(error).__name__}: {error}".splitlines()[0])
    counters = getattr(getattr(scorer, "prepare", None), "counters", None)
    return replace(done, told=counters.taken()) if counters is not None else done


Run = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Scorer:
    """One copy of the teacher, with the weights of one snapshot at a time.

    prepare: called with the model at every snapshot, gives what is run in its place (lowered.py); None: the model
    itself. If it has `counters`, what they count goes on with the scores.
    """

    def __init__(self, folder: Path, prepare: Callable[[teacher.Teacher], Run] | None = None) -> None:
        self.snapshots, self.prepare = Snapshots(folder), prepare
        self.version, self.checksum = -1, None
        self.model: teacher.Teacher | None = None
        self.said: Any = None
        self.run: Run | None = None

    @torch.no_grad()
    def score(self, version: int, ids: NDArray[np.int32], bag: NDArray[np.int32]) -> tuple[NDArray, NDArray]:
        """Logits and embeddings. Raises SnapshotError where the snapshot cannot be read. One that is published again is
        read again; one that is gone since is still known."""
        checksum = self.snapshots.checksum(version)
        if version != self.version or checksum not in (None, self.checksum):
            self._load(version)
            self.checksum = checksum
        logit, embedding = self.run(torch.from_numpy(ids).long(), torch.from_numpy(bag).long())
        return logit.float().numpy(), embedding.half().numpy()

    def _load(self, version: int) -> None:
        weights, said = self.snapshots.read(version)
        self.version = -1  # until all of it is there
        if self.model is None or said != self.said:
            self.model, _, _ = teacher.built(said)
            self.said = said
        self.model.load_state_dict(weights)
        self.run = self.prepare(self.model) if self.prepare else self.model
        self.version = version


class Local:
    """Scores in this process, when a batch is collected. limit: batches that may be under way."""

    def __init__(self, scorer: Scores, limit: int = 4) -> None:
        self.scorer, self.limit = scorer, limit
        self.waiting: deque[Batch] = deque()

    def submit(self, batch: Batch) -> None:
        if self.full:
            raise ExfmError(f"{self.limit} batches are under way already: collect before submitting more")
        self.waiting.append(batch)

    def collect(self, seconds: float | None) -> list[Scored]:
        done = [scored(self.scorer, batch) for batch in self.waiting]
        self.waiting.clear()
        return done

    @property
    def full(self) -> bool:
        return len(self.waiting) >= self.limit

    def close(self) -> None:
        self.waiting.clear()
