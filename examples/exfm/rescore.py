"""What is scored already, scored another way by the same teacher: by older snapshots of it, or in low precision.

A teacher learns from labels and never from its scores, so its snapshots are the same however late they are used and
however they are run. Experiments train it once and score again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from examples.exfm import files
from examples.exfm.das.rows import Rows
from examples.exfm.das.scorers import Run, Scorer
from examples.exfm.das.snapshots import Snapshot, Snapshots
from examples.exfm.errors import ExfmError
from examples.exfm.parts import Parts
from examples.exfm.score import NOTE, rows_of, standing
from examples.exfm.teacher import Teacher

BATCH = 512


def rescore(work: Path, to: Path, delay: int = 0, prepare: Callable[[Teacher], Run] | None = None) -> None:
    """The rows of `work`, which has kept all its snapshots, into `to`, part by part; parts that are there stay.

    delay: seconds that the teacher lags behind when a row was sent to be scored. prepare: as of a Scorer. A row goes on
    without a score where it had none, or where no snapshot is that old. Raises ExfmError if `to` holds the rows of
    another teacher, or by another delay.
    """
    name = getattr(prepare, "how", "eager" if prepare is None else "prepared")
    of, all_there = standing(work)  # asked before the rows are read, as `train` does
    how = {"of": of, "delay": delay, "how": name}
    snapshots, scorer, parts = Snapshots(work / "snapshots"), Scorer(work / "snapshots", prepare), Parts(to / "rows")
    with files.alone(to):
        note = to / NOTE
        if note.exists() and json.loads(note.read_text(encoding="utf-8"))["how"] != how:
            raise ExfmError(f"{to} was scored again another way, or of other rows: give another folder, or remove it")
        files.write_json(note, {"how": how, "done": False})
        for number, rows in rows_of(work, parts.count):
            parts.prepare(number, _again(rows, snapshots, scorer, delay).to_table())
            parts.commit(number + 1)
        files.write_json(note, {"how": how, "done": all_there})


def _again(rows: Rows, snapshots: Snapshots, scorer: Scorer, delay: int) -> Rows:
    by: dict[int, Snapshot | None] = {int(at): snapshots.at(int(at) - delay) for at in np.unique(rows.scored_at)}
    version = np.array([each.version if (each := by[at]) else -1 for at in rows.scored_at.tolist()], np.int64)
    until = np.array([each.trained_until if (each := by[at]) else 0 for at in rows.scored_at.tolist()], np.int64)
    scored = rows.scored & (version >= 0)
    logit, embedding = np.zeros_like(rows.logit), np.zeros_like(rows.embedding)
    for of in np.unique(version[scored]).tolist():
        mine = np.flatnonzero(scored & (version == of))
        for batch in np.array_split(mine, -(-len(mine) // BATCH)):
            logit[batch], embedding[batch] = scorer.score(of, rows.ids[batch], rows.bag[batch])
    probability = np.where(scored, 1 / (1 + np.exp(-logit.astype(np.float64))), 0).astype(np.float32)
    return replace(
        rows,
        scored=scored,
        logit=logit,
        probability=probability,
        embedding=embedding,
        version=np.where(scored, version, 0),
        trained_until=np.where(scored, until, 0),
    )
