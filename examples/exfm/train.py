"""From joined rows to students: each learns from its vertical's rows, in their order, every row once.

All students read the rows in one pass. Evaluation is progressive, at the time of serving: an example is predicted by
the student as it was when the example was shown, which had learned from labels that had come by then and from no later
ones. (What it would say just before it learns from the row flatters it: labels of the same sitting have come by then.)
Rows come in the order of their labels, so a student reads ahead by the window that labels take, and learns behind it.

Predictions are parts as the rows are, so what was learned, what was predicted and where the reading stands are put on
disk together; a run that is killed and started again ends with the same bits.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from examples.exfm import checkpoint, files
from examples.exfm.checkpoint import Checkpoint
from examples.exfm.counters import Counters
from examples.exfm.das.rows import Rows, joined
from examples.exfm.distil.step import Batch, optimizer_of, step
from examples.exfm.errors import ExfmError
from examples.exfm.parts import Parts
from examples.exfm.score import REPORT as SCORE_REPORT
from examples.exfm.score import rows_of, standing
from examples.exfm.stream.events import Schema
from examples.exfm.students import StudentSpec

REPORT = "train.json"
WINDOW = 100 * 3600
"""A little more than lies between an example and its release: DAS waits 49 hours from when it was logged, which may be
49 hours after it was shown."""


class Trainee:
    """One student, its adapter, and the rows that it has read and not learned from; served: which of them it
    predicted."""

    def __init__(self, spec: StudentSpec, schema: Schema, window: int) -> None:
        self.spec, self.vertical, self.window = spec, schema.vertical(spec.vertical), window
        self.most = schema.most
        self.student, self.adapter = spec.build(schema)
        self.optimizer = optimizer_of(self.student, spec.rate, spec.table_rate)
        self.adapter_optimizer = None if self.adapter is None else optimizer_of(self.adapter, spec.rate, spec.rate)
        self.held: Rows | None = None
        self.served = np.zeros(0, bool)
        self.steps, self.seconds = 0, 0.0

    def learn(self, rows: Rows, last: bool = False) -> list[pa.Table]:
        """Take rows; the predictions that were made on the way. last: there are no more, so learn from all of them."""
        begun = time.perf_counter()
        own = rows.of(self.vertical)
        now = int(rows.released[-1]) if len(rows) else 0
        held = own if self.held is None else joined([self.held, own])
        served, made, start = np.concatenate([self.served, np.zeros(len(own), bool)]), [], 0
        while (end := min(start + self.spec.batch, len(held))) > start:
            until = int(held.released[end - 1])
            if not last and (end - start < self.spec.batch or now < until + self.window):
                break
            due = ~served & (held.time <= until)
            due[start:end] |= ~served[start:end]
            if due.any():
                made.append(self._serve(held.take(due)))
            served |= due
            self._step(held.take(slice(start, end)))
            start = end
        self.held, self.served = held.take(slice(start, None)), served[start:]
        if start:
            self.seconds += time.perf_counter() - begun
        return made

    @torch.no_grad()
    def _serve(self, rows: Rows) -> pa.Table:
        """Predict, as these examples are shown."""
        logits = self.student.eval()(*features_of(rows, self.most))
        said = {name: getattr(rows, name) for name in ("id", "time", "label", "scored")}
        names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(rows), np.int16)), [self.spec.name])
        return pa.table({"student": names.cast("string"), **said, "logit": logits.numpy()})

    def _step(self, rows: Rows) -> None:
        """Learn from a batch."""
        torch.manual_seed((self.spec.seed + 1) * 1_000_003 + self.steps)
        batch = batch_of(rows, self.most)
        step(self.student.train(), self.optimizer, batch, self.adapter, self.adapter_optimizer)
        self.steps += 1

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Everything, for a checkpoint."""
        found = checkpoint.training(self.student, self.optimizer, f"{prefix}student.")
        if self.adapter is not None and self.adapter_optimizer is not None:
            found |= checkpoint.training(self.adapter, self.adapter_optimizer, f"{prefix}adapter.")
        if self.held is not None:
            found |= checkpoint.arrays(self.held.arrays(), f"{prefix}held.")
            found[f"{prefix}served"] = torch.from_numpy(self.served)
        found[f"{prefix}steps"] = torch.tensor(self.steps)
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        checkpoint.resume(self.student, self.optimizer, tensors, "student.")
        if self.adapter is not None and self.adapter_optimizer is not None:
            checkpoint.resume(self.adapter, self.adapter_optimizer, tensors, "adapter.")
        held = {n.removeprefix("held."): each.numpy() for n, each in tensors.items() if n.startswith("held.")}
        if held:
            self.held, self.served = Rows(**held), tensors["served"].numpy()
        self.steps = int(tensors["steps"])


@dataclass(frozen=True)
class Progress:
    parts: int
    rows: int


def train(
    work: Path,
    schema: Schema,
    students: Sequence[StudentSpec],
    out: Path | None = None,
    every: int = 4,
    window: int = WINDOW,
    last: bool | None = None,
    each: Callable[[Progress], None] = lambda progress: None,
) -> Counters:
    """Learn from all rows that are there, from where the last run stopped.

    out: where students go, `work/students` by default. every: parts between checkpoints. window: seconds that a row
    takes at most. last: no rows will come any more, so what is held is learned from, too; None: as `score` says. Raises
    ExfmError if another process is at it, for students of other rows, and for rows that come after the last.
    """
    if not (work / "rows").exists():
        scored = (work / SCORE_REPORT).exists()
        words = "no example of its log has a label" if scored else "run `score` first"
        raise ExfmError(f"{work} holds no joined rows: {words}")
    (of, all_there), until = standing(work), Parts(work / "rows").count  # asked before the rows are read
    out = out or work / "students"
    with files.alone(out):
        run = Run(schema, students, out, of, window)
        for number, rows in rows_of(work, run.read, run.counters):
            run.take(number, rows)
            if (number + 1) % every == 0:
                run.save()
            each(Progress(run.read, run.rows))
        run.read = max(run.read, until)  # parts that are damaged were counted, and are not looked at again
        if all_there if last is None else last:
            run.finish()
        run.save()
        run.report()
        return run.counters


class Run:
    """One process's run over the rows."""

    def __init__(self, schema: Schema, students: Sequence[StudentSpec], out: Path, of: str, window: int) -> None:
        names = [spec.name for spec in students]
        if len(set(names)) < len(names) or not names:
            raise ExfmError(f"students need names of their own, and there has to be one; got {names}")
        self.trainees = [Trainee(spec, schema, window) for spec in students]
        self.specs = [asdict(spec) for spec in students]
        self.parts, self.folder, self.out = Parts(out / "predictions"), out / "checkpoints", out
        self.counters = Counters()
        self.of, self.finished = of, False
        self.read = self.rows = self.written = self.saved = 0
        self.predicted: list[pa.Table] = []
        self._resume()

    def take(self, number: int, rows: Rows) -> None:
        if self.finished:
            words = f"{self.out} has learned to the end of the rows, and more have come since"
            raise ExfmError(f"{words}: give another folder, or remove it to begin anew")
        for trainee in self.trainees:
            self.predicted += trainee.learn(rows)
        self.read, self.rows = number + 1, self.rows + len(rows)

    def finish(self) -> None:
        for trainee in self.trainees:
            if trainee.held is not None:
                self.predicted += trainee.learn(trainee.held.take(slice(0, 0)), last=True)
        self.finished = True

    def save(self) -> None:
        if self.predicted:
            self.parts.prepare(self.written, pa.concat_tables(self.predicted))
            self.written, self.predicted = self.written + 1, []
        tensors: dict[str, Tensor] = {}
        for index, trainee in enumerate(self.trainees):
            tensors |= trainee.tensors(f"{index}.")
        said = {
            "read": self.read,
            "rows": self.rows,
            "written": self.written,
            "specs": self.specs,
            "of": self.of,
            "finished": self.finished,
            "seconds": [trainee.seconds for trainee in self.trainees],
            "counters": self.counters.to_json(),
        }
        checkpoint.save(self.folder, Checkpoint(self.saved, tensors, said))
        self.saved += 1
        self.parts.commit(self.written)

    def report(self) -> None:
        """What the evaluation will want to know of the students beside their predictions."""
        students = {
            trainee.spec.name: {
                **asdict(trainee.spec),
                "steps": trainee.steps,
                "seconds": trainee.seconds,
                "parameters": sum(each.numel() for each in trainee.student.parameters()),
            }
            for trainee in self.trainees
        }
        body = {"rows": self.rows, "counters": dict(self.counters.counts), "students": students}
        files.write_json(self.out / REPORT, body)

    def _resume(self) -> None:
        last = checkpoint.load(self.folder, self.counters)
        if last is None:
            self.parts.go_back(0)
            return
        if last.said["specs"] != json.loads(json.dumps(self.specs)):
            raise ExfmError(f"{self.out} holds other students: give another folder, or remove it to begin anew")
        before = last.said.get("of", "")
        if before and self.of and before != self.of:
            raise ExfmError(f"{self.out} learned from other rows: give another folder, or remove it to begin anew")
        self.finished = last.said.get("finished", False)
        earlier = Counters.from_json(last.said["counters"])
        earlier.take_in(self.counters)
        self.counters = earlier
        self.read, self.rows, self.written = last.said["read"], last.said["rows"], last.said["written"]
        self.saved = last.number + 1
        for index, (trainee, seconds) in enumerate(zip(self.trainees, last.said["seconds"], strict=True)):
            trainee.restore(last.part(f"{index}."))
            trainee.seconds = seconds
        self.parts.go_back(self.written)


def features_of(rows: Rows, most: int) -> tuple[Tensor, Tensor]:
    """What a student reads: of the column `bag` the bag alone, `most` places, and no history."""
    return torch.from_numpy(rows.ids).long(), torch.from_numpy(rows.bag[:, :most]).long()


def batch_of(rows: Rows, most: int) -> Batch:
    return Batch(*features_of(rows, most), *(torch.from_numpy(each) for each in (rows.label, rows.logit, rows.scored)))


def predictions_of(out: Path, counters: Counters | None = None) -> Iterator[pa.Table]:
    """student, id, time, label, scored, logit; a part at a time."""
    for _, table in Parts(out / "predictions").tables(counters=counters):
        yield table
