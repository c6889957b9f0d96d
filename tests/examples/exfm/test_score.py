"""The run from the log to joined rows: the teacher learns and scores in the stream's order, and a crash costs
nothing."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from examples.exfm import checkpoint, files
from examples.exfm.counters import Counters
from examples.exfm.das.rows import joined
from examples.exfm.das.service import Settings
from examples.exfm.das.snapshots import Snapshots
from examples.exfm.errors import ExfmError
from examples.exfm.parts import Parts
from examples.exfm.score import Plan, Run, local, rows_of, score, standing
from examples.exfm.stream.events import IMPRESSION, LABEL, Events
from examples.exfm.stream.log import Log, name_of, write
from tests.examples.exfm.world import DRIFT, HOUR, TINY

ROOT = Path(__file__).parents[3]
LONGER = replace(DRIFT, hours=16, rate=120)


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    write(folder, LONGER.schema, LONGER.events())
    return folder


def plan(work, **changes):
    return Plan(work, TINY, Settings(batch=128), every=3, period=2 * HOUR, keep=3, **changes)


def source(log):
    return Log(log, chunk_rows=150, span=1)


@pytest.fixture(scope="module")
def straight(log, tmp_path_factory):
    work = tmp_path_factory.mktemp("straight")
    seen = []
    counters = score(source(log), plan(work), each=seen.append)
    return work, counters, seen


def all_of(work):
    return joined([rows for _, rows in rows_of(work)])


def test_rows_come_out_once_and_most_with_a_score(straight):
    work, counters, seen = straight
    rows = all_of(work)
    assert sorted(rows.id[rows.first].tolist()) == list(range(16 * 120))
    assert counters["teacher_calls"] == rows.scored[rows.first].sum() < 16 * 120
    assert counters["teacher_calls"] + counters["no_teacher"] == 16 * 120
    assert 0.5 < rows.scored.mean() < 1 and len(set(rows.version[rows.scored].tolist())) == 5
    assert seen[-1].rows == len(rows) and [each.chunks for each in seen] == list(range(1, len(seen) + 1))


def test_a_score_never_comes_from_a_teacher_that_knew_the_label(straight):
    rows = all_of(straight[0])
    rows = rows.take(rows.scored)
    assert (rows.trained_until < rows.scored_at).all()
    first = rows.take(rows.first)
    assert (first.trained_until < first.released).all()


def test_snapshots_rotate(straight):
    assert len(Snapshots(straight[0] / "snapshots").index()) == 3


def test_a_second_run_does_nothing_more(straight, log):
    work, _, _ = straight
    before = {path: path.stat().st_mtime_ns for path in (work / "rows").iterdir()}
    seen = []
    again = score(source(log), plan(work), each=seen.append)
    assert not seen and again.counts == straight[1].counts
    assert before == {path: path.stat().st_mtime_ns for path in (work / "rows").iterdir()}


def same_files(one, other):
    names = sorted(path.name for path in (one / "rows").iterdir())
    assert names == sorted(path.name for path in (other / "rows").iterdir())
    for number, rows in rows_of(one):
        [(_, again)] = [each for each in rows_of(other, number) if each[0] == number]
        for name, values in rows.arrays().items():
            assert np.array_equal(values, again.arrays()[name], equal_nan=values.dtype.kind == "f"), (number, name)
    [mine], [theirs] = ([checkpoint.load(each / "checkpoints" / "score")] for each in (one, other))
    for name, tensor in mine.tensors.items():
        assert np.array_equal(tensor.numpy(), theirs.tensors[name].numpy(), equal_nan=tensor.is_floating_point()), name
    assert {**mine.said, "seconds": 0} == {**theirs.said, "seconds": 0}


class Killed(BaseException):
    """As a signal would: nothing of the program's own catches it."""


def kill_at(monkeypatch, moment):
    """Dies before or after the moment-th file operation, whichever it is; counts them."""
    count = [0]

    def dying(function):
        def call(*args, **kwargs):
            count[0] += 1
            if count[0] == moment:
                raise Killed
            found = function(*args, **kwargs)
            count[0] += 1
            if count[0] == moment:
                raise Killed
            return found

        return call

    for owner, name in ((files, "write"), (Parts, "prepare"), (Parts, "commit"), (Snapshots, "rotate")):
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
    return count


def test_killed_around_every_kind_of_file_operation_it_ends_with_the_same_bits(straight, log, tmp_path, monkeypatch):
    """Twelve runs killed one after another, each at another operation than the last, and one that ends."""
    kills = 0
    for moment in (1, 2, 3, 4, 5, 6, 7, 8, 11, 14, 17, 10_000):
        with monkeypatch.context() as patch:
            kill_at(patch, moment)
            try:
                score(source(log), plan(tmp_path))
            except Killed:
                kills += 1
    assert kills == 11
    same_files(straight[0], tmp_path)


def test_a_corrupt_hour_is_counted_and_the_run_goes_on(straight, log, tmp_path):
    shutil.copytree(log, tmp_path / "log")
    victim = sorted((tmp_path / "log").glob("*.parquet"))[4]
    victim.write_bytes(victim.read_bytes()[:-10])
    damaged = source(tmp_path / "log")
    counters = score(damaged, plan(tmp_path / "work"))
    assert damaged.counters["corrupt_file"] == 1
    rows, events = all_of(tmp_path / "work"), Events.from_table(pq.read_table(log / victim.name))
    shown, told = (set(events.id[events.kind == kind].tolist()) for kind in (IMPRESSION, LABEL))
    assert set(range(16 * 120)) - set(rows.id.tolist()) == shown | told and victim.name in damaged.counters.named[0]
    assert counters["examples"] == 16 * 120 - len(shown)


def test_rows_of_two_plans_do_not_mix(straight, log):
    work = straight[0]
    for changes, words in (
        ({"seed": 1}, "seed 0, not 1"),
        ({"how": "loka"}, "how eager, not loka"),
        ({"settings": Settings(batch=128, late=True, delay=60)}, "settings.delay 0, not 60; settings.late False, not"),
        ({"size": replace(TINY, width=16)}, "size.width 8, not 16"),
    ):
        with pytest.raises(ExfmError, match=f"scored another way .*{words}.*another folder"):
            score(source(log), replace(plan(work), **changes))
    assert score(source(log), replace(plan(work), every=5, keep=9)).counts == straight[1].counts


def test_what_could_not_be_read_is_still_known_after_a_restart(straight, log, tmp_path):
    damaged = tmp_path / "log"
    shutil.copytree(log, damaged)
    hours = Log(damaged).hours
    (damaged / name_of(hours[1])).write_bytes(b"PAR1 no")
    (damaged / name_of(hours[-2])).write_bytes(b"PAR1 no")
    told = []
    for last in (9, None):  # stopped behind the first of them, then to the end
        read = source(damaged)
        run = Run(read, plan(tmp_path / "work"), local(tmp_path / "work" / "snapshots"))
        if last is not None:
            for events, position in islice(run._chunks(), last):
                run._take(events)
                run.position, run.chunks = position, run.chunks + 1
            run._save()
        else:
            run.to_the_end(lambda at: None)
        told.append(read.counters["corrupt_file"])
    score(source(damaged), plan(tmp_path / "work"))  # once more: nothing is left to do, and nothing is forgotten
    report = json.loads((tmp_path / "work" / "score.json").read_text())
    assert told == [1, 2] and report["source"] == {"corrupt_file": 2} and len(report["named"]) == 2


def test_hours_that_come_later_are_read_later(straight, log, tmp_path):
    folder = tmp_path / "log"
    shutil.copytree(log, folder)
    hours = Log(folder).hours
    for hour in hours[9:]:
        (folder / name_of(hour)).unlink()
    some = score(source(folder), plan(tmp_path / "work"))["rows"]
    assert standing(tmp_path / "work")[1] and 0 < some < straight[1]["rows"]
    shutil.copytree(log, folder, dirs_exist_ok=True)
    assert score(source(folder), plan(tmp_path / "work"))["rows"] == straight[1]["rows"]
    assert sorted(all_of(tmp_path / "work").id.tolist()) == sorted(all_of(straight[0]).id.tolist())


def test_back_at_the_checkpoint_before_the_last_it_finds_the_snapshots_it_needs(straight, log, tmp_path):
    last, keep = 20, 1

    def killed(at):
        if at.chunks == last:
            raise Killed

    short = replace(plan(tmp_path), keep=keep, every=6)
    with pytest.raises(Killed):
        score(source(log), short, each=killed)
    *_, newest = sorted((tmp_path / "checkpoints" / "score").glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])
    counters = score(source(log), short)
    assert counters["corrupt_checkpoint"] == 1 and counters["rows_without_score"] == straight[1]["rows_without_score"]
    mine, theirs = (all_of(work) for work in (tmp_path, straight[0]))
    for name, values in mine.arrays().items():
        assert np.array_equal(values, theirs.arrays()[name], equal_nan=values.dtype.kind == "f"), name


def test_a_part_that_is_gone_is_said(straight, log, tmp_path):
    shutil.copytree(straight[0], tmp_path / "work")
    (tmp_path / "work" / "rows" / "part-000001.parquet").unlink()
    with pytest.raises(ExfmError, match=r"part-000001.parquet is gone, .*begin anew"):
        score(source(log), plan(tmp_path / "work"))
    faults = Counters()
    numbers = [number for number, _ in rows_of(tmp_path / "work", counters=faults)]
    assert 1 not in numbers and 2 in numbers and faults["corrupt_part"] == 1


def test_two_processes_do_not_work_in_one_folder(straight, log):
    holder = "import sys, pathlib; from examples.exfm import files; held = files.alone(pathlib.Path(sys.argv[1]));"
    command = [sys.executable, "-c", holder + "print('held', flush=True); sys.stdin.read()", str(straight[0])]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ExfmError, match="another process works in"):
            score(source(log), plan(straight[0]))
        other.communicate("")
    assert score(source(log), plan(straight[0])).counts == straight[1].counts


def die():
    raise Killed


def test_rows_are_all_there_only_when_the_last_part_is(straight, log, tmp_path, monkeypatch):
    """Whoever learns the end of the rows learns nothing more: to be told so too early is for good."""
    assert standing(tmp_path) == ("", False) and standing(straight[0])[1]
    with monkeypatch.context() as patch:  # killed behind the last checkpoint, before its part is in place
        commit = Parts.commit
        patch.setattr(Parts, "commit", lambda self, count: commit(self, count) if count < 1 else die())
        with pytest.raises(Killed):
            score(source(log), replace(plan(tmp_path), every=10**6))
    assert checkpoint.load(tmp_path / "checkpoints" / "score").said["done"]
    assert not standing(tmp_path)[1]
    score(source(log), replace(plan(tmp_path), every=10**6))
    assert standing(tmp_path) == (standing(straight[0])[0], True)  # the same plan, the same log, the same rows
    for path in (tmp_path / "checkpoints" / "score").iterdir():
        path.write_bytes(b"")
    assert standing(tmp_path) == ("", False)


def test_while_more_is_scored_nobody_takes_the_rows_for_all_of_them(log, tmp_path):
    folder = tmp_path / "log"
    shutil.copytree(log, folder)
    hours = Log(folder).hours
    for hour in hours[9:]:
        (folder / name_of(hour)).unlink()
    score(source(folder), plan(tmp_path / "work"))
    before = standing(tmp_path / "work")
    shutil.copytree(log, folder, dirs_exist_ok=True)
    seen = []
    score(source(folder), plan(tmp_path / "work"), each=lambda at: seen.append(standing(tmp_path / "work")))
    assert before[1] and not any(there for _, there in seen) and {name for name, _ in seen} == {before[0]}
    assert standing(tmp_path / "work") == before


def test_rows_of_another_log_do_not_mix(straight, tmp_path):
    other = replace(LONGER, history=2)
    write(tmp_path / "log", other.schema, other.events())
    with pytest.raises(ExfmError, match="was scored from another log"):
        score(source(tmp_path / "log"), plan(straight[0]))


def test_a_damaged_hour_at_the_end_is_counted_once_however_often_one_starts(log, tmp_path):
    folder = tmp_path / "log"
    shutil.copytree(log, folder)
    (folder / name_of(Log(folder).hours[-1])).write_bytes(b"PAR1 no")
    for _ in range(3):
        score(source(folder), plan(tmp_path / "work"))
        assert json.loads((tmp_path / "work" / "score.json").read_text())["source"] == {"corrupt_file": 1}
