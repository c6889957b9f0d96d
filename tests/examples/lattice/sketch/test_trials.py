"""One file of trials: shared by threads and processes, of settings that it names, damaged or not there."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

optuna = pytest.importorskip("optuna")
from examples.lattice.data import DataError  # noqa: E402
from examples.lattice.sketch.files import worker, workers  # noqa: E402
from examples.lattice.sketch.search import Between, Bounds, Cost, search  # noqa: E402

optuna.logging.set_verbosity(optuna.logging.WARNING)
SPACE = {"width": (8, 16, 32), "rate": Between(1e-4, 1e-1, log=True)}
WIDE = Bounds(0.0, 1.0)
PROCESS = """
import json, sys, time
from pathlib import Path
from examples.lattice.sketch.search import Between, Bounds, Cost, search

folder, name = Path(sys.argv[1]), sys.argv[2]

def quality(values, report):
    with (folder / "log").open("a") as log:
        log.write(json.dumps([name, values]) + "\\n")
    while name == "first" and not (folder / "go").exists():
        time.sleep(0.05)
    return 0.7

space = {"width": (8, 16, 32), "rate": Between(1e-4, 1e-1, log=True)}
found = search(lambda values: Cost(1e3, 0.1), quality, space, Bounds(0.0, 1.0), trials=4, storage=folder / "trials.db")
print(json.dumps([found.tried, found.values]))
"""


def cost(values):
    return Cost(1e3 * values["width"], 0.01 * values["width"])


def states(storage):
    return [trial.state.name for trial in optuna.load_study(study_name="sketch", storage=f"sqlite:///{storage}").trials]


def log_of(folder: Path, lines: int) -> list:
    """What the processes have said, once it is so many lines."""
    for _ in range(1200):
        found = (folder / "log").read_text().splitlines() if (folder / "log").is_file() else []
        if len(found) >= lines:
            return [json.loads(line) for line in found]
        time.sleep(0.05)
    raise AssertionError(f"waited a minute for {lines} lines, got {found}")


def test_two_searches_share_the_work_of_one_file(tmp_path):
    storage, both, calls = tmp_path / "new" / "trials.db", threading.Barrier(2, timeout=60), []

    def quality(values, report):
        calls.append(tuple(values.items()))
        both.wait()  # passes only if both searches train at a time
        return 0.7 + values["width"] / 1000

    def one(seed):
        return search(cost, quality, SPACE, WIDE, trials=4, storage=storage, seed=seed)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(one, (0, 1))
    assert first == second and first.tried == first.trained == 4
    assert len(set(calls)) == len(calls) == 4 and states(storage) == ["COMPLETE"] * 4
    assert {path.name for path in storage.parent.iterdir()} == {"trials.db", "trials.db.lock"}


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_two_processes_share_the_work_and_one_that_is_killed_leaves_it_to_the_other(tmp_path, killed):
    started = []

    def start(name):
        arguments = [sys.executable, "-W", "ignore", "-c", PROCESS, str(tmp_path), name]
        started.append(subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True))
        return started[-1]

    try:
        first = start("first")
        [(_, begun)] = log_of(tmp_path, 1)
        second = start("second")
        log_of(tmp_path, 4)  # the second has done all but the one that the first is at
        time.sleep(0.5)
        assert first.poll() is None and second.poll() is None  # neither fails, and the second waits
        if killed:
            first.kill()
        else:
            (tmp_path / "go").touch()
        out, _ = second.communicate(timeout=60)
        said = log_of(tmp_path, 4)
        assert json.loads(out)[0] == 4 and second.returncode == 0
        assert [name for name, _ in said] == ["first"] + ["second"] * (3 + killed)
        if killed:
            assert said[-1][1] == begun and states(tmp_path / "trials.db") == ["FAIL"] + ["COMPLETE"] * 4
        else:
            assert first.communicate(timeout=60)[0] == out and first.returncode == 0
            assert states(tmp_path / "trials.db") == ["COMPLETE"] * 4
        assert not list(tmp_path.glob("*worker*"))
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_who_is_there(tmp_path):
    of = tmp_path / "trials.db"
    with worker(of) as one, worker(of) as two:
        assert workers(of) == {one, two} and len({one, two}) == 2
        (tmp_path / "trials.db.worker-dead").touch()  # of a process that was killed: a file, no lock
        (tmp_path / "other.db.worker-x").touch()
        assert workers(of) == {one, two}
    assert workers(of) == set() and [path.name for path in tmp_path.iterdir()] == ["other.db.worker-x"]


def test_a_file_that_holds_no_trials_is_named(tmp_path):
    storage = tmp_path / "trials.db"
    storage.write_text("no database" * 100)
    with pytest.raises(DataError, match=r"trials.db is damaged, or no file of trials .*: give another file, or delete"):
        search(cost, lambda *_: 0.7, SPACE, WIDE, trials=1, storage=storage)
