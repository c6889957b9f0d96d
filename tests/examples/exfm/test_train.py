"""Students learn every row of their vertical once, also after crashes, to the same bits."""

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from examples.exfm import checkpoint, files
from examples.exfm.das.rows import joined
from examples.exfm.errors import ExfmError
from examples.exfm.evaluate import by_student, cost, evaluate, flops, smooth
from examples.exfm.parts import Parts
from examples.exfm.score import rows_of, score
from examples.exfm.stream.log import write
from examples.exfm.students import ARMS, StudentSpec
from examples.exfm.teacher import Teacher
from examples.exfm.train import Trainee, features_of, predictions_of, train
from tests.examples.exfm.test_score import LONGER, Killed, plan, source
from tests.examples.exfm.world import TINY

STUDENTS = (
    StudentSpec("retrieve", "feed", "retrieval", "adapter", batch=64),
    StudentSpec("late", "stories", "late", "auxiliary", batch=64, beta=2.0),
    StudentSpec("alone", "stories", "late", "none", batch=64),
)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    write(folder / "log", LONGER.schema, LONGER.events())
    score(source(folder / "log"), plan(folder))
    return folder


@pytest.fixture(scope="module")
def straight(work):
    seen = []
    train(work, LONGER.schema, STUDENTS, every=2, each=seen.append)
    return work / "students", seen


def test_every_row_of_a_vertical_is_learned_once(work, straight):
    out, seen = straight
    rows = joined([each for _, each in rows_of(work)])
    predicted = pa.concat_tables(predictions_of(out))
    for spec in STUDENTS:
        own = rows.of(LONGER.schema.vertical(spec.vertical))
        mine = predicted.filter(pa.array([name == spec.name for name in predicted["student"].to_pylist()]))
        label = dict(zip(own.id.tolist(), own.label.tolist(), strict=True))
        assert len(label) == len(own) == len(mine)
        assert dict(zip(mine["id"].to_pylist(), mine["label"].to_pylist(), strict=True)) == label
    assert seen[-1].rows == len(rows)


def test_a_prediction_is_of_the_student_as_it_was_when_the_example_was_shown(work, straight):
    """Learning behind, with all rows at hand from the start, gives the same predictions."""
    rows = joined([each for _, each in rows_of(work)])
    spec = STUDENTS[1]
    own = rows.of(LONGER.schema.vertical(spec.vertical))
    trainee = Trainee(spec, LONGER.schema, 0)
    order = np.argsort(own.time, kind="stable")
    said, learned = {}, 0
    for row in order.tolist():
        while learned + 64 <= len(own) and own.released[learned + 63] < own.time[row]:
            trainee._step(own.take(slice(learned, learned + 64)))
            learned += 64
        with torch.no_grad():
            features = features_of(own.take(slice(row, row + 1)), LONGER.schema.most)
            said[int(own.id[row])] = float(trainee.student.eval()(*features)[0])
    assert learned > 300
    found = pa.concat_tables(predictions_of(straight[0]))
    found = found.filter(pa.array([name == spec.name for name in found["student"].to_pylist()]))
    for id, logit in zip(found["id"].to_pylist(), found["logit"].to_pylist(), strict=True):
        assert said[id] == pytest.approx(logit, abs=1e-4), id


def same(one, other):
    [mine], [theirs] = ([checkpoint.load(each / "checkpoints")] for each in (one, other))
    assert set(mine.tensors) == set(theirs.tensors)
    for name, tensor in mine.tensors.items():
        assert torch.equal(tensor, theirs.tensors[name]), name
    assert pa.concat_tables(predictions_of(one)).equals(pa.concat_tables(predictions_of(other)))


def test_killed_around_every_kind_of_file_operation_it_ends_with_the_same_bits(work, straight, tmp_path, monkeypatch):
    kills = 0
    for moment in (1, 2, 3, 4, 5, 6, 8, 10, 10_000):
        count = [0]

        def dying(function, count=count, moment=moment):
            def call(*args, **kwargs):
                for part in (None, function):
                    count[0] += 1
                    if count[0] == moment:
                        raise Killed
                    found = function(*args, **kwargs) if part else None
                return found

            return call

        with monkeypatch.context() as patch:
            for owner, name in ((files, "write"), (Parts, "prepare"), (Parts, "commit")):
                patch.setattr(owner, name, dying(getattr(owner, name)))
            try:
                train(work, LONGER.schema, STUDENTS, tmp_path, every=2)
            except Killed:
                kills += 1
    assert kills == 8
    same(straight[0], tmp_path)


def test_another_student_beside_changes_none(work, straight, tmp_path):
    train(work, LONGER.schema, STUDENTS[1:2], tmp_path, every=2)
    alone, beside = (checkpoint.load(each / "checkpoints") for each in (tmp_path, straight[0]))
    for name, tensor in alone.part("0.").items():
        assert torch.equal(tensor, beside.part("1.")[name]), name


def test_rows_that_come_later_are_learned_later(work, straight, tmp_path):
    """Two runs, the second with all the rows, end as one."""
    (tmp_path / "work" / "rows").mkdir(parents=True)
    names = sorted(path.name for path in (work / "rows").iterdir())
    for name in names[: len(names) // 2]:
        (tmp_path / "work" / "rows" / name).write_bytes((work / "rows" / name).read_bytes())
    train(tmp_path / "work", LONGER.schema, STUDENTS, tmp_path / "out", every=2, last=False)
    for name in names:
        (tmp_path / "work" / "rows" / name).write_bytes((work / "rows" / name).read_bytes())
    train(tmp_path / "work", LONGER.schema, STUDENTS, tmp_path / "out", every=2)
    one, other = (checkpoint.load(each / "checkpoints") for each in (straight[0], tmp_path / "out"))
    assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


def test_wrong_students_are_errors(work, straight):
    with pytest.raises(ExfmError, match="holds other students"):
        train(work, LONGER.schema, [replace(STUDENTS[0], beta=9.0)], straight[0])
    with pytest.raises(ExfmError, match="names of their own"):
        train(work, LONGER.schema, [STUDENTS[0], STUDENTS[0]])
    with pytest.raises(ExfmError, match="no arm 'both'; there are none, shared"):
        StudentSpec("s", "feed", "late", "both")
    with pytest.raises(ExfmError, match="leave beta at 1"):
        StudentSpec("s", "feed", "late", "shared", beta=5.0)
    with pytest.raises(ExfmError, match="no vertical 'news'"):
        train(work, LONGER.schema, [replace(STUDENTS[0], vertical="news")])
    assert ARMS[0] == "none"


def test_the_evaluation(work, straight):
    results = evaluate(work, LONGER.schema)
    assert set(results["students"]) == {spec.name for spec in STUDENTS}
    late = results["students"]["late"]
    assert 0.5 < late["total"]["ne"] < 1.5 and late["flops_forward"] > 1000
    assert results["teacher"]["cost"]["calls_per_example"] == 1.0
    assert set(results["teacher"]["verticals"]) == {"feed", "stories", "search"}
    assert 0 < results["teacher"]["freshness_hours"]["p50"] < 16
    assert json.loads((straight[0] / "results.json").read_text())["stream"]["rows"] == results["stream"]["rows"]
    assert (straight[0] / "ne.png").stat().st_size > 1000
    assert results["teacher"]["cost"]["flops_forward"] == flops(Teacher(LONGER.schema, TINY), LONGER.schema)
    assert results["teacher"]["cost"]["examples"] >= results["teacher"]["cost"]["sent"] > 0
    with pytest.raises(ExfmError, match="run `train` first"):
        evaluate(work, LONGER.schema, work / "none")


def test_what_comes_first_is_said(straight, tmp_path):
    with pytest.raises(ExfmError, match="no joined rows: run `score` first"):
        train(tmp_path, LONGER.schema, STUDENTS)
    shutil.copytree(straight[0], tmp_path / "students")
    with pytest.raises(ExfmError, match=r"no score.json: run `score` to its end"):
        evaluate(tmp_path, LONGER.schema)


def test_days_are_smoothed_and_no_call_has_no_cost():
    assert list(smooth({0: {"rows": 1, "ne": 0.5}, 1: {"rows": 3, "ne": 0.9}, 2: {"rows": 1, "ne": None}})) == [
        (0, 0.5),
        (1, pytest.approx(0.8)),
    ]
    scored = {"counters": {}, "teacher_parameters": 3, "size": asdict(TINY)}
    assert cost(scored, LONGER.schema)["calls_per_example"] is None


def test_predictions_are_read_by_student(straight):
    found = by_student(straight[0])
    assert sum(each["rows"] for each in found["late"]["days"].values()) == found["late"]["total"]["rows"]
    assert found["late"]["total"]["rows"] == found["alone"]["total"]["rows"] != found["retrieve"]["total"]["rows"]
