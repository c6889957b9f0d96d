"""One file of trials: shared by threads and processes, of settings that it names, damaged or not there."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

optuna = pytest.importorskip("optuna")
from examples.lattice.data import DataError  # noqa: E402
from examples.lattice.files import worker, workers  # noqa: E402
from examples.lattice.sketch.proposals import propose  # noqa: E402
from examples.lattice.sketch.search import Between, Bounds, Cost, NothingFits, search  # noqa: E402
from examples.lattice.sketch.terms import distributions  # noqa: E402
from examples.lattice.sketch.trials import opened  # noqa: E402

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


@pytest.mark.parametrize("at", ["enqueue_trial", "ask", "_suggest"])
def test_a_search_that_is_stopped_while_it_proposes_loses_nothing(tmp_path, monkeypatch, at):
    """Behind any of the steps by which a trial comes to be: it is tried later, with the values that it was to have."""
    storage, calls = tmp_path / "trials.db", []
    space = {"width": (8, 16, 32), "layers": Between(1, 9, whole=True), "rate": Between(1e-4, 1e-1, log=True)}

    def quality(values, report):
        calls.append(tuple(values.items()))
        return 0.7 + values["width"] / 1000

    whole = search(cost, quality, space, WIDE, trials=3)
    search(cost, quality, space, WIDE, trials=1, storage=storage)
    of = optuna.Trial if at == "_suggest" else optuna.Study
    real = getattr(of, at)

    def stopped(self, *args, **settings):
        made = real(self, *args, **settings)
        if getattr(self, "study", self).study_name == "sketch":  # and no study that a proposal is made with
            raise KeyboardInterrupt
        return made

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(of, at, stopped)
        search(cost, quality, space, WIDE, trials=3, storage=storage)
    assert len(calls) == 4
    assert search(cost, quality, space, WIDE, trials=3, storage=storage) == whole
    assert calls[3:] == calls[:3]


def test_who_leaves_while_another_looks_has_ended_its_trial_itself():
    with opened(None, {}, SPACE, WIDE, seed=0) as trials:
        theirs = trials.take(2, threading.Event())

        def leaving():
            trials.study.tell(theirs, state=optuna.trial.TrialState.FAIL)
            return set()

        ours = replace(trials, worker="ours", workers=leaving).take(2, threading.Event())
        assert ours.params == theirs.params and ours.number == 1


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


def test_trials_of_other_settings_are_refused(tmp_path):
    storage = tmp_path / "trials.db"

    def go(quality, said, space=SPACE, trials=2):
        return search(cost, quality, space, WIDE, trials=trials, storage=storage, said=said)

    said = {"data": "movielens", "rows": (1, 2), "cluster": {"gpus": 8, "memory": 10}}
    found = go(lambda *_: 0.7, said)
    never = lambda *_: pytest.fail("trained again")  # noqa: E731
    assert go(never, json.loads(json.dumps(said))) == found  # in whatever way it is said
    others = {
        r'data is "movielens" there, "clothing" here': {**said, "data": "clothing"},
        r"cluster.gpus is 8 there, 2 here; cluster.link is not said there, 1 here": {
            **said,
            "cluster": {"gpus": 2, "memory": 10, "link": 1},
        },
        r"rows is \[1, 2\] there, not said here": {name: said[name] for name in ("data", "cluster")},
    }
    for message, other in others.items():
        with pytest.raises(DataError, match=rf"trials.db holds trials of other settings \({message}\): give another"):
            go(never, other)
    for trials in (2, 4):
        with pytest.raises(DataError, match=r"space.width is \[8, 16, 32\] there, \[8, 16\] here"):
            go(never, said, {**SPACE, "width": (8, 16)}, trials)
    with pytest.raises(DataError, match=r"space.rate.high is 0.1 there, 0.2 here"):
        go(never, said, {**SPACE, "rate": Between(1e-4, 0.2, log=True)})
    assert go(never, said) == found


def test_trials_that_do_not_say_what_they_are_of_are_refused(tmp_path):
    storage = tmp_path / "trials.db"
    old = optuna.create_study(study_name="sketch", direction="maximize", storage=f"sqlite:///{storage}")
    search(cost, lambda *_: 0.7, SPACE, WIDE, trials=1, storage=storage)  # a study without trials is nobody's
    storage.unlink()
    old = optuna.create_study(study_name="sketch", direction="maximize", storage=f"sqlite:///{storage}")
    old.ask({})
    with pytest.raises(DataError, match=r"trials.db holds trials that do not say what they were made of"):
        search(cost, lambda *_: 0.7, SPACE, WIDE, trials=1, storage=storage)


def test_other_bounds_judge_the_trials_that_are_there(tmp_path):
    calls = []

    def quality(values, report):
        calls.append(values["width"])
        return 0.7 + values["width"] / 1000

    def go(quality_bound, latency, trials=9):
        bounds = Bounds(quality_bound, latency)
        return search(cost, quality, {"width": (8, 16, 32)}, bounds, trials=trials, storage=tmp_path / "trials.db")

    tight = go(0.0, 0.2)
    assert tight.cost.seconds <= 0.2 and max(calls) < 32 and tight.tried == 9 > tight.trained == len(calls)
    loose, before = go(0.0, 0.5), len(calls)
    assert loose.values == {"width": 32} and loose.tried == loose.trained == 9 == before
    assert calls[tight.trained :] == [32] * (9 - tight.trained)  # what had been refused, and nothing else
    assert go(0.0, 0.2) == replace(tight, trained=9)  # nothing left to train
    assert go(0.0, 0.5, trials=1) == loose  # fewer than there are: the best of all
    with pytest.raises(NothingFits, match=r"none of 9 trials .* within 1e-06 s; 0 were quick enough"):
        go(0.99, 1e-6)
    with pytest.raises(NothingFits, match=r"none of 9 trials has an AUC of 0.99 .* 9 were quick .* to 0.7320"):
        go(0.99, 0.5)
    assert len(calls) == 9


def test_sizes_that_fit_no_way_are_not_trained_without_a_bound_either():
    with pytest.raises(NothingFits, match="none of 2 trials"):
        search(lambda _: Cost(1.0, math.inf), lambda *_: pytest.fail("trained"), SPACE, Bounds(0.0, math.inf), trials=2)


def test_proposals_heed_the_bounds_of_today():
    """Trials from before are told to TPE with the bounds of this search, not with those they were made under."""
    space = {"width": Between(1, 100)}

    def trial(number):
        width, attributes = 1.0 + number * 5, {"proposal": number, "cost": [1e3, 1.0 + number * 5], "auc": 0.7}
        return optuna.trial.create_trial(
            value=0.5 + number / 100, params={"width": width}, distributions=distributions(space), user_attrs=attributes
        )

    trials = [trial(number) for number in range(20)]
    proposed = {
        latency: [propose(trials, space, Bounds(0.0, latency), 0, number)["width"] for number in range(20, 40)]
        for latency in (20.0, 200.0)
    }
    assert fmean(proposed[20.0]) < 35 < 60 < fmean(proposed[200.0])
