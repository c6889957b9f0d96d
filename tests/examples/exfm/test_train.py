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
from examples.exfm.evaluate import began, by_student, cost, evaluate, flops, smooth, teacher
from examples.exfm.parts import Parts
from examples.exfm.score import rows_of, score
from examples.exfm.stream.log import write
from examples.exfm.students import ARMS, StudentSpec
from examples.exfm.teacher import Teacher
from examples.exfm.train import Trainee, features_of, predictions_of, train
from tests.examples.exfm.test_score import LONGER, Killed, plan, source
from tests.examples.exfm.world import HOUR, TINY

DAY = 24 * HOUR
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
    train(tmp_path / "work", LONGER.schema, STUDENTS, tmp_path / "out", every=2, last=True)
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
    found = by_student(straight[0], began(straight[0].parent))
    assert sum(each["rows"] for each in found["late"]["days"].values()) == found["late"]["total"]["rows"]
    assert found["late"]["total"]["rows"] == found["alone"]["total"]["rows"] != found["retrieve"]["total"]["rows"]


def halfway(work, to, upto):
    """`to` has the first rows of `work`, and is being scored still."""
    (to / "rows").mkdir(parents=True)
    names = sorted(path.name for path in (work / "rows").glob("part-*"))
    for name in names[:upto]:
        shutil.copy(work / "rows" / name, to / "rows" / name)
    last = checkpoint.load(work / "checkpoints" / "score")
    checkpoint.save(to / "checkpoints" / "score", replace(last, said={**last.said, "done": False}))


def test_students_do_not_learn_the_end_of_rows_that_still_come(work, straight, tmp_path):
    """What is held when there are no more rows is learned from at once; were that done too early, rows that come later
    would be predicted by a student that knows later labels."""
    halfway(work, tmp_path, 4)
    train(tmp_path, LONGER.schema, STUDENTS, every=2)
    shutil.copytree(work / "rows", tmp_path / "rows", dirs_exist_ok=True)
    shutil.copytree(work / "checkpoints", tmp_path / "checkpoints", dirs_exist_ok=True)
    train(tmp_path, LONGER.schema, STUDENTS, every=2)
    one, other = (
        {(row["student"], row["id"]): row["logit"] for table in predictions_of(each) for row in table.to_pylist()}
        for each in (straight[0], tmp_path / "students")
    )
    assert one == other


def test_rows_after_the_end_and_other_rows_are_refused(work, tmp_path):
    halfway(work, tmp_path / "work", 4)
    train(tmp_path / "work", LONGER.schema, STUDENTS[:1], last=True)
    shutil.copytree(work / "rows", tmp_path / "work" / "rows", dirs_exist_ok=True)
    with pytest.raises(ExfmError, match="more have come since: give another folder"):
        train(tmp_path / "work", LONGER.schema, STUDENTS[:1])
    other = tmp_path / "other"
    score(source(work / "log"), replace(plan(other), seed=5))
    with pytest.raises(ExfmError, match="learned from other rows"):
        train(other, LONGER.schema, STUDENTS[:1], tmp_path / "work" / "students")


def test_a_damaged_checkpoint_loses_no_prediction_of_rows_that_came_since(work, straight, tmp_path):
    halfway(work, tmp_path, 6)
    train(tmp_path, LONGER.schema, STUDENTS, every=2)
    shutil.copytree(work / "rows", tmp_path / "rows", dirs_exist_ok=True)
    *_, newest = sorted((tmp_path / "students" / "checkpoints").glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])
    counters = train(tmp_path, LONGER.schema, STUDENTS, every=2, last=True)
    assert counters["corrupt_checkpoint"] == 1
    one, other = (
        sorted((row["student"], row["id"]) for table in predictions_of(each) for row in table.to_pylist())
        for each in (straight[0], tmp_path / "students")
    )
    assert one == other


def test_days_are_the_streams_for_everybody(work, tmp_path):
    """A teacher that lags gives its first score later; what `skip` leaves out is the same."""
    rows = joined([each for _, each in rows_of(work)])
    start = began(work)
    assert start == rows.time.min()
    later = replace(rows, scored=rows.scored & (rows.time > start + 8 * HOUR))
    parts = Parts(tmp_path / "rows")
    parts.prepare(0, later.to_table())
    parts.commit(1)
    assert began(tmp_path) == start
    found = teacher(tmp_path, LONGER.schema, start - DAY, skip=1)["total"]["rows"]
    assert found == (later.scored & later.first).sum() > 0  # the whole stream is in day 1
    assert teacher(tmp_path, LONGER.schema, start, skip=1)["total"]["rows"] == 0


def test_a_student_that_gives_no_numbers_is_said_and_others_are_judged(work, straight, tmp_path):
    [table, *_] = predictions_of(straight[0])
    names = np.array(table["student"].to_pylist())
    logit = np.where(names == "late", np.nan, table["logit"].to_numpy())
    parts = Parts(tmp_path / "predictions")
    parts.prepare(0, table.set_column(table.column_names.index("logit"), "logit", pa.array(logit, pa.float32())))
    parts.commit(1)
    found = by_student(tmp_path, began(work))
    late, alone = found["late"]["total"], found["alone"]["total"]
    assert late["ne"] is None and late["not_finite"] == late["rows"] > 0
    assert alone["not_finite"] == 0 and alone["rows"] > 0


def test_damaged_predictions_are_counted_and_the_rest_is_judged(work, straight, tmp_path):
    shutil.copytree(straight[0], tmp_path / "students")
    parts = sorted((tmp_path / "students" / "predictions").iterdir())
    damaged = parts[0].with_name(f"part-{len(parts):06}.parquet")
    damaged.write_bytes(b"PAR1")
    results = evaluate(work, LONGER.schema, tmp_path / "students")
    assert results["faults"]["counters"] == {"corrupt_part": 1} and damaged.name in results["faults"]["named"][0]
    assert results["students"]["late"]["total"]["rows"] > 0
