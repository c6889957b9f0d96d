"""A log is made once, whole, and of what it says."""

import json

import pytest

from examples.exfm.errors import ExfmError
from examples.exfm.files import LOCK
from examples.exfm.stream.drift import Drift
from examples.exfm.stream.events import SCHEMA
from examples.exfm.stream.log import ORIGIN, Log, write, write_hour
from examples.exfm.stream.origin import once, record

DRIFT = Drift(hours=5, rate=20)


class Killed(BaseException):
    """As a process that is gone: nothing catches it."""


def killed_after(parts, events):
    for number, part in enumerate(events):
        if number == parts:
            raise Killed
        yield part


def all_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in (ORIGIN, LOCK)}


def test_a_log_whose_writing_was_cut_off_is_written_anew(tmp_path):
    write(tmp_path / "whole", DRIFT.schema, DRIFT.events())
    folder = tmp_path / "log"
    asked = {"data": "drift", "hours": 9}
    with pytest.raises(Killed):
        other = Drift(hours=9, rate=20, seed=1)
        once(folder, asked, lambda: write(folder, other.schema, killed_after(7, other.events())))
    assert list(folder.glob("*.parquet")) and not (folder / SCHEMA).exists()
    with pytest.raises(ExfmError, match="holds no log"):
        Log(folder)
    count = once(folder, {"data": "drift"}, lambda: write(folder, DRIFT.schema, DRIFT.events()))
    assert count == sum(len(events) for events, _ in Log(folder).chunks())
    assert all_of(folder) == all_of(tmp_path / "whole")  # nothing of the other one is left


def test_another_log_is_refused_and_what_is_not_said_agrees(tmp_path):
    assert record(tmp_path, "drift", 1, None, 3) > 0
    assert json.loads((tmp_path / ORIGIN).read_text()) == {"data": "drift", "days": 1, "history": 0, "seed": 3}
    for same in (("drift", 1, None, 3), (None, None, None, None), ("drift", None, None, None)):
        assert record(tmp_path, *same) == 0
    with pytest.raises(ExfmError, match=r"days 1, not 2; seed 3, not 4.*another folder"):
        record(tmp_path, "drift", 2, None, 4)
    with pytest.raises(ExfmError, match="data drift, not movielens"):
        record(tmp_path, "movielens", None, None, None)
    with pytest.raises(ExfmError, match="history 0, not 8"):
        record(tmp_path, "drift", 1, 8, 3)


def test_a_log_of_ones_own_is_taken_as_it_is(tmp_path):
    write(tmp_path, DRIFT.schema, DRIFT.events())
    assert record(tmp_path, "movielens", 3, None, None) == 0
    with pytest.raises(ExfmError, match="holds a log already"):
        write(tmp_path, DRIFT.schema, DRIFT.events())


def test_defaults_said_and_not_said_are_one(tmp_path):
    assert record(tmp_path, "drift", None, None, None) > 0
    for same in ((None, 7, 0, 0), ("drift", 7, None, None), (None, None, 0, None)):
        assert record(tmp_path, *same) == 0
    with pytest.raises(ExfmError, match="days 7, not 8"):
        record(tmp_path, "drift", 8, None, None)


def test_two_do_not_make_one_log(tmp_path):
    def make():
        with pytest.raises(ExfmError, match="another process works in"):
            once(tmp_path, {"data": "drift"}, lambda: write(tmp_path, DRIFT.schema, DRIFT.events()))
        return write(tmp_path, DRIFT.schema, DRIFT.events())

    assert once(tmp_path, {"data": "drift"}, make) > 0


def test_hours_that_nobody_began_here_stay(tmp_path):
    write_hour(tmp_path, next(iter(DRIFT.events())))
    before = all_of(tmp_path)
    with pytest.raises(ExfmError, match="or hours of one"):
        write(tmp_path, DRIFT.schema, DRIFT.events())
    assert all_of(tmp_path) == before


def test_a_damaged_note_is_said(tmp_path):
    write(tmp_path, DRIFT.schema, DRIFT.events())
    (tmp_path / ORIGIN).write_text("[1")
    with pytest.raises(ExfmError, match="remove it to take the log as it is"):
        Log(tmp_path)
