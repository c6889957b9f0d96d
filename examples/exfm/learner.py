"""The teacher learns the union of all traffic, each example once and, with a memory, again, and publishes itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from examples.exfm import checkpoint
from examples.exfm.das.rows import Rows, joined
from examples.exfm.das.snapshots import Snapshots
from examples.exfm.distil.step import optimizer_of
from examples.exfm.errors import ExfmError
from examples.exfm.memory import Lesson, Memory
from examples.exfm.stream.events import Schema
from examples.exfm.teacher import Teacher, TeacherSize, described


@dataclass(frozen=True)
class Lessons:
    """How the teacher learns.

    batch: rows a step; rate, table_rate: of Adam, rows of the tables being seen rarely. replay: steps on rows drawn
    from the past for each step on new ones; memory: how many rows the past is.

    """

    batch: int = 256
    rate: float = 1e-3
    table_rate: float = 3e-3
    replay: int = 0
    memory: int = 1 << 16


LESSONS = {"large": Lessons(), "small": Lessons(batch=64, table_rate=1e-2)}
"""On MovieLens a snapshot of yesterday that scores what is shown today is better for large batches (NE 0.897 against
0.91 or so): small ones fit who is there today. Small ones are better for scores that are given when labels come, by
snapshots of hours ago: there it is today's people who are asked about."""


class Learner:
    """Takes released rows, steps whenever it has a batch of them, and publishes when the stream comes into a new
    period.

    period: seconds between snapshots. Every step seeds its own draws, so no generator has a state to be saved. until:
    the stream's time of the newest row that it learned.
    """

    def __init__(
        self,
        schema: Schema,
        size: TeacherSize,
        snapshots: Snapshots,
        period: int = 24 * 3600,
        seed: int = 0,
        lessons: Lessons | None = None,
    ) -> None:
        torch.manual_seed(seed)
        self.schema, self.size, self.snapshots, self.period, self.seed = schema, size, snapshots, period, seed
        self.lessons = lessons or Lessons()
        self.model = Teacher(schema, size).train()
        self.optimizer = optimizer_of(self.model, self.lessons.rate, self.lessons.table_rate)
        self.memory = Memory(schema, self.lessons.memory) if self.lessons.replay else None
        self.held: Rows | None = None
        self.steps = self.until = self.published = 0

    def publish_if_due(self, now: int) -> bool:
        """Publish what has been learned when `now` lies in another period than the last snapshot."""
        version = now // self.period
        if version <= self.published or not self.steps:
            return False
        self.published = version
        weights = {name: each.detach() for name, each in self.model.state_dict().items()}
        self.snapshots.publish(version, now, self.until, weights, described(self.schema, self.size))
        return True

    def learn(self, rows: Rows) -> int:
        """Take rows; how many steps on new ones were taken. Those that were released before are known already."""
        new = rows.take(rows.first)
        held = joined([self.held, new]) if self.held is not None else new
        batch = self.lessons.batch
        steps = len(held) // batch
        for i in range(steps):
            fresh = held.take(slice(i * batch, (i + 1) * batch))
            self._step((fresh.ids, fresh.bag, fresh.label))
            self.until = int(fresh.released[-1])
            if self.memory is not None:
                self._remember(self.memory, fresh)
        self.held = held.take(slice(steps * batch, None))
        return steps

    def _remember(self, memory: Memory, fresh: Rows) -> None:
        """Learn from the past again, which these rows now belong to."""
        memory.add(fresh)
        for _ in range(self.lessons.replay):
            self._step(memory.draw(np.random.default_rng([self.seed, self.steps]), len(fresh)))

    def _step(self, lesson: Lesson) -> None:
        torch.manual_seed((self.seed + 1) * 1_000_003 + self.steps)
        ids, bag, label = (torch.from_numpy(each) for each in lesson)
        logit, _ = self.model(ids.long(), bag.long())
        loss = binary_cross_entropy_with_logits(logit, label)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.steps += 1

    def tensors(self) -> dict[str, Tensor]:
        """Everything, for a checkpoint."""
        found = checkpoint.training(self.model, self.optimizer, "teacher.")
        found["teacher.cursor"] = torch.tensor([self.steps, self.until, self.published])
        if self.held is not None:
            found |= checkpoint.arrays(self.held.arrays(), "teacher.held.")
        if self.memory is not None:
            found |= checkpoint.arrays(self.memory.arrays(), "teacher.memory.")
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        checkpoint.resume(self.model, self.optimizer, tensors, "teacher.")
        self.steps, self.until, self.published = tensors["teacher.cursor"].tolist()
        held, kept = _part(tensors, "teacher.held."), _part(tensors, "teacher.memory.")
        self.held = Rows(**held) if held else None
        if bool(kept) != (self.memory is not None):
            raise ExfmError("the checkpoint is of a teacher that learns another way (--rehearse): give another folder")
        if self.memory is not None:
            self.memory.restore(kept)


def _part(tensors: Mapping[str, Tensor], start: str) -> dict[str, Any]:
    """Arrays of the tensors whose names begin so, without that."""
    return {n.removeprefix(start): each.numpy() for n, each in tensors.items() if n.startswith(start)}
