"""Kills real processes at random moments of their work; what comes of it as JSON. Run by test_kills.py.

    python -m tests.examples.exfm.killed FOLDER KILLS

One child at a time does all there is to do, from the log to the students; it is killed (SIGKILL) when it has used so
much CPU time, drawn anew each time up to 0.4 of what the whole takes, and another takes its place. A child whose work
is done makes room for one in a new folder.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import torch

from examples.exfm import checkpoint
from examples.exfm.das.service import Settings
from examples.exfm.distil.step import optimizer_of
from examples.exfm.score import Plan, rows_of, score
from examples.exfm.stream.drift import Drift
from examples.exfm.stream.log import Log, write
from examples.exfm.students import StudentSpec
from examples.exfm.teacher import SIZES
from examples.exfm.train import train

DRIFT = Drift(hours=30, rate=150, users=60, items=30, new_users=3)
STUDENTS = (
    StudentSpec("a", "feed", "early", batch=64),
    StudentSpec("b", "stories", "retrieval", "auxiliary", batch=64),
)


def work(log: Path, folder: Path) -> None:
    plan = Plan(folder, SIZES["tiny"], Settings(batch=128), every=3, period=3 * 3600, keep=3)
    score(Log(log, chunk_rows=200, span=1), plan)
    train(folder, DRIFT.schema, STUDENTS, every=3)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(log: Path, folder: Path, limit: float | None) -> bool:
    """One child; whether it was killed."""
    child = multiprocessing.get_context("fork").Process(target=work, args=(log, folder))
    child.start()
    while limit is not None and child.is_alive() and cpu_seconds(child.pid) < limit:
        time.sleep(0.005)
    if limit is not None and child.is_alive():
        os.kill(child.pid, signal.SIGKILL)
    child.join()
    if child.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a child ended with {child.exitcode}")
    return child.exitcode == -signal.SIGKILL


def content(folder: Path) -> dict[str, bytes]:
    """Everything that a run leaves and others read, but the times that it took."""
    found = {}
    for number, rows in rows_of(folder):
        found |= {f"rows {number} {name}": values.tobytes() for name, values in rows.arrays().items()}
    for path in sorted((folder / "students" / "predictions").glob("*.parquet")):
        found[path.name] = path.read_bytes()
    for path in (folder / "students" / "checkpoints", folder / "checkpoints" / "score"):
        last = checkpoint.load(path)
        found |= {f"{path.name} {name}": each.numpy().tobytes() for name, each in last.tensors.items()}
    return found


def main() -> None:
    folder, wanted = Path(sys.argv[1]), int(sys.argv[2])
    write(folder / "log", DRIFT.schema, DRIFT.events())
    optimizer_of(torch.nn.Linear(1, 1), 0.1, 0.1)  # what torch imports for it, children find imported
    run(folder / "log", folder / "straight", None)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    whole = used.ru_utime + used.ru_stime
    expected = content(folder / "straight")
    draws = random.Random(0)
    kills = finished = differing = 0
    ids = sorted(id for _, rows in rows_of(folder / "straight") for id in rows.id[rows.first].tolist())
    while kills < wanted or finished == 0:
        killed = run(folder / "log", folder / f"killed-{finished}", draws.uniform(0.0, 0.4 * whole))
        kills += killed
        if not killed:
            differing += content(folder / f"killed-{finished}") != expected
            finished += 1
    print(
        json.dumps(
            {
                "kills": kills,
                "runs": finished,
                "differing": differing,
                "every_example_once": ids == list(range(30 * 150)),
                "whole": whole,
            }
        )
    )


if __name__ == "__main__":
    main()
