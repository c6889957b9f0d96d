"""From the event log to joined rows: DAS, the teacher that scores, and the teacher that learns, in the stream's order.

A folder of work holds everything: `snapshots/`, `rows/` (the joined rows, for students), `checkpoints/score/`. Killed
at any moment and started again, it goes on and ends with the same files.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from examples.exfm import checkpoint, files
from examples.exfm.checkpoint import Checkpoint
from examples.exfm.counters import Counters
from examples.exfm.das.rows import Rows, joined
from examples.exfm.das.scorers import Local, Scorer, Scorers
from examples.exfm.das.service import Das, Settings
from examples.exfm.das.snapshots import Snapshots
from examples.exfm.errors import ExfmError
from examples.exfm.learner import Learner, Lessons
from examples.exfm.parts import Parts
from examples.exfm.stream.events import Events
from examples.exfm.stream.log import Position, Source
from examples.exfm.stream.pace import pace
from examples.exfm.teacher import SIZES, TeacherSize

REPORT, NOTE = "score.json", "rescored.json"


@dataclass(frozen=True)
class Plan:
    """work: the folder. every: chunks between checkpoints. speed: seconds of the stream a second; None for at once.
    period: seconds between snapshots; lessons: how the teacher learns. how: a name for what `scorers` runs; rows by
    another go to another folder."""

    work: Path
    size: TeacherSize = SIZES["small"]
    settings: Settings = field(default_factory=Settings)
    every: int = 16
    period: int = 24 * 3600
    keep: int = 8
    seed: int = 0
    speed: float | None = None
    lessons: Lessons = field(default_factory=Lessons)
    how: str = "eager"

    def said(self) -> dict[str, Any]:
        """What rows depend on, by name, as JSON has it."""
        parts = {"size": asdict(self.size), "settings": asdict(self.settings), "lessons": asdict(self.lessons)}
        found = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
        found |= {"period": self.period, "seed": self.seed, "how": self.how}
        return json.loads(json.dumps(found))


@dataclass(frozen=True)
class Progress:
    """After a chunk: the stream's time, chunks and rows so far."""

    now: int
    chunks: int
    rows: int


def score(
    source: Source,
    plan: Plan,
    scorers: Callable[[Path], Scorers] | None = None,
    each: Callable[[Progress], None] = lambda progress: None,
) -> Counters:
    """Run to the end of the source; what happened. scorers: given the snapshots' folder, who runs the teacher.

    Called again, it goes on with what the source has got since. Raises ExfmError if another process is at it, and if
    the folder was begun by another plan.
    """
    with files.alone(plan.work):
        return Run(source, plan, (scorers or local)(plan.work / "snapshots")).to_the_end(each)


def standing(work: Path) -> tuple[str, bool]:
    """What tells the rows of one run from those of another ("" if that is not known yet), and whether they all are
    there."""
    note, last = work / NOTE, checkpoint.load(work / "checkpoints" / "score")
    if note.exists():  # scored again by `rescore`
        said = json.loads(note.read_text(encoding="utf-8"))
        return files.checksum(json.dumps(said["how"], sort_keys=True).encode()), said["done"]
    if last is None:
        return "", False
    return last.said.get("identity", ""), last.said["done"] and Parts(work / "rows").count >= last.said["parts"]


def local(folder: Path) -> Scorers:
    return Local(Scorer(folder))


class Run:
    """One process's run. What it holds beyond the checkpoint's interval is lost with it and made again."""

    def __init__(self, source: Source, plan: Plan, scorers: Scorers) -> None:
        self.source, self.plan = source, plan
        self.snapshots = Snapshots(plan.work / "snapshots", plan.keep)
        self.parts, self.folder = Parts(plan.work / "rows"), plan.work / "checkpoints" / "score"
        self.learner = Learner(source.schema, plan.size, self.snapshots, plan.period, plan.seed, plan.lessons)
        self.das = Das(source.schema, scorers, self.snapshots.at, plan.size.embedding, plan.settings)
        self.position: Position | None = None
        self.held: list[Rows] = []
        self.chunks = self.rows = self.saved = self.written = 0
        self.seconds, self.done = 0.0, False
        self.identity = files.checksum(json.dumps([plan.said(), self._log()], sort_keys=True).encode())
        self.told = ""  # what the source had counted at `position`
        self.needed = 0  # stream's time from which on snapshots may be asked for again
        self._resume()

    def to_the_end(self, each: Callable[[Progress], None]) -> Counters:
        begun, before = time.perf_counter(), self.seconds
        for events, position in self._chunks():
            if self.done:  # there is more since: nobody shall take these rows for all of them
                self.done = False
                self._save()
            self._take(events)
            self.position = position
            self.chunks += 1
            if self.chunks % self.plan.every == 0:
                self.seconds = before + time.perf_counter() - begun
                self._save()
            each(Progress(self.das.now, self.chunks, self.rows))
        if not self.done:
            self.seconds, self.done = before + time.perf_counter() - begun, True
            self._save()
        self.das.scorers.close()
        self._report()
        return self.das.counters

    def _chunks(self) -> Iterator[tuple[Events, Position]]:
        return pace(self.source.chunks(self.position), self.plan.speed)

    def _take(self, events: Events) -> None:
        """One chunk: the teacher of the day before is published before anything of the new day is scored."""
        self.learner.publish_if_due(max(int(events.logged[0]), self.das.now))
        self.das.push(events)
        rows = self.das.release()
        self.learner.learn(rows)
        self.rows += len(rows)
        if len(rows):
            self.held.append(rows)
        if (source := self._source()) is not None:
            self.told = source.to_json()

    def _save(self) -> None:
        """A part of rows and the checkpoint behind it. Snapshots that the checkpoint before it would ask for stay, as
        that one does."""
        self.das.drain()
        if self.held:
            self.parts.prepare(self.written, joined(self.held).to_table())
            self.written, self.held = self.written + 1, []
        said = {
            "position": self.position,
            "chunks": self.chunks,
            "rows": self.rows,
            "parts": self.written,
            "seconds": self.seconds,
            "done": self.done,
            "needed": self.needed,
            "counters": self.das.counters.to_json(),
            "plan": self.plan.said(),
            "log": self._log(),
            "identity": self.identity,
            "source": self.told,
        }
        tensors = {**self.learner.tensors(), **checkpoint.arrays(self.das.arrays(), "das.")}
        checkpoint.save(self.folder, Checkpoint(self.saved, tensors, said))
        self.saved += 1
        self.parts.commit(self.written)
        self._rotate()
        self.needed = self.das.now

    def _rotate(self) -> None:
        self.snapshots.rotate(self.needed - self.plan.settings.delay)

    def _resume(self) -> None:
        last = checkpoint.load(self.folder, self.das.counters)
        if last is None:
            self.parts.go_back(0)
            return
        said = last.said
        self._same_plan(said.get("plan", {}), said.get("log"))
        self.identity = said.get("identity", self.identity)
        damage = self.das.counters
        self.das.counters = Counters.from_json(said["counters"])
        self.das.counters.take_in(damage)
        self.position, self.done, self.seconds = said["position"], said["done"], said["seconds"]
        self.chunks, self.rows, self.written = said["chunks"], said["rows"], said["parts"]
        self.saved = last.number + 1
        self.told = said.get("source", "")
        if (source := self._source()) is not None and self.told:
            source.taken()  # what was counted behind the checkpoint is read again
            source.take_in(Counters.from_json(self.told))
        self.learner.restore(last.tensors)
        self.das.restore({name: each.numpy() for name, each in last.part("das.").items()})
        self.parts.go_back(self.written)
        self.needed = said.get("needed", 0)
        self._rotate()
        self.needed = self.das.now

    def _log(self) -> dict[str, Any]:
        """What tells the source from others."""
        return {"schema": json.loads(json.dumps(asdict(self.source.schema))), "origin": self.source.origin}

    def _same_plan(self, before: Mapping[str, Any], log: Mapping[str, Any] | None) -> None:
        """Raises ExfmError if rows that are there were made another way, or of something else."""
        if log not in (None, self._log()):
            raise ExfmError(f"{self.plan.work} was scored from another log: give another folder, or remove it")
        now = self.plan.said()
        others = [f"{name} {before[name]}, not {now[name]}" for name in now if before.get(name, now[name]) != now[name]]
        if others:
            words = f"{self.plan.work} was scored another way ({'; '.join(others)})"
            raise ExfmError(f"{words}: give another folder, or remove it to begin anew")

    def _source(self) -> Counters | None:
        return getattr(self.source, "counters", None)

    def _report(self) -> None:
        """What the evaluation will want to know."""
        counters, source = self.das.counters, self._source()
        body = {
            "plan": self.plan.said(),
            "size": asdict(self.plan.size),
            "counters": dict(sorted(counters.counts.items())),
            "source": dict(source.counts) if source is not None else {},
            "named": list(counters.named) + (list(source.named) if source is not None else []),
            "rows": self.rows,
            "chunks": self.chunks,
            "seconds": self.seconds,
            "teacher_steps": self.learner.steps,
            "teacher_parameters": sum(each.numel() for each in self.learner.model.parameters()),
        }
        files.write_json(self.plan.work / REPORT, body)


def rows_of(work: Path, start: int = 0, counters: Counters | None = None) -> Iterator[tuple[int, Rows]]:
    """The joined rows so far, a part at a time."""
    return Parts(work / "rows").tables(start, counters, Rows.from_table)
