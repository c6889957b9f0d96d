"""A log is made once, whole, and of what it says."""

import json

import pytest

from examples.exfm.errors import ExfmError
from examples.exfm.stream.drift import Drift
from examples.exfm.stream.events import SCHEMA
from examples.exfm.stream.log import Log, name_of, write
from examples.exfm.stream.origin import ORIGIN, once, record

DRIFT = Drift(hours=5, rate=20)


class Killed(BaseException):
    """As a process that is gone: nothing catches it."""


def killed_after(parts, events):
    for number, part in enumerate(events):
        if number == parts:
            raise Killed
        yield part


def all_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ORIGIN}


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


def test_nothing_but_hours_is_removed(tmp_path):
    (tmp_path / "notes.parquet").write_bytes(b"mine")
    (tmp_path / name_of(1)).write_bytes(b"an hour")
    with pytest.raises(ExfmError, match="no hour of a log"):
        write(tmp_path, DRIFT.schema, DRIFT.events())
    assert (tmp_path / "notes.parquet").read_bytes() == b"mine"


def test_another_log_is_refused_and_what_is_not_said_agrees(tmp_path):
    assert record(tmp_path, "drift", 1, None, 3) > 0
    assert json.loads((tmp_path / ORIGIN).read_text()) == {"data": "drift", "days": 1, "history": None, "seed": 3}
    for same in (("drift", 1, None, 3), (None, None, None, None), ("drift", None, None, None)):
        assert record(tmp_path, *same) == 0
    with pytest.raises(ExfmError, match=r"days 1, not 2; seed 3, not 4.*another folder"):
        record(tmp_path, "drift", 2, None, 4)
    with pytest.raises(ExfmError, match="data drift, not movielens"):
        record(tmp_path, "movielens", None, None, None)
    with pytest.raises(ExfmError, match="history None, not 8"):
        record(tmp_path, "drift", 1, 8, 3)


def test_a_log_of_ones_own_is_taken_as_it_is(tmp_path):
    write(tmp_path, DRIFT.schema, DRIFT.events())
    assert record(tmp_path, "movielens", 3, None, None) == 0
    with pytest.raises(ExfmError, match="holds a log already"):
        write(tmp_path, DRIFT.schema, DRIFT.events())
