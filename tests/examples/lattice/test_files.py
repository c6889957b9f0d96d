"""A file is whole or as it was, whoever writes beside it."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from examples.lattice.files import alone, merge_json, whole, write_json


def test_writers_of_two_files_with_one_stem_do_not_meet(tmp_path):
    """Each writes to a path of its own, until its file is whole."""
    with whole(tmp_path / "run.a") as first, whole(tmp_path / "run.b") as second, whole(tmp_path / "run.a") as third:
        assert len({first, second, third}) == 3
        for path, text in ((first, "a"), (second, "b"), (third, "c")):
            path.write_text(text)
        assert not (tmp_path / "run.a").exists()
    assert (tmp_path / "run.a").read_text() == "a" and (tmp_path / "run.b").read_text() == "b"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.a", "run.b"]


def test_a_writer_that_fails_leaves_the_file_as_it_was(tmp_path):
    write_json(tmp_path / "r.json", {"a": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(tmp_path / "r.json", {"a": object()})
    with pytest.raises(KeyboardInterrupt), whole(tmp_path / "r.json") as beside:
        beside.write_text("half")
        raise KeyboardInterrupt
    assert json.loads((tmp_path / "r.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def adding(path: Path, who: str) -> None:
    for number in range(25):
        new = {f"{who} {number}": number}
        merge_json(path, lambda there, new=new: there | new)


@pytest.mark.parametrize("pool", ["threads", "processes"])
def test_of_many_that_merge_at_a_time_nothing_is_lost(tmp_path, pool):
    path, names = tmp_path / "r.json", ("a", "b", "c")
    made = ThreadPoolExecutor(3) if pool == "threads" else ProcessPoolExecutor(3, mp_context=get_context("spawn"))
    with made as workers:
        list(workers.map(adding, [path] * 3, names))
    assert len(json.loads(path.read_text())) == 75
    assert [each.name for each in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize("stays", [True, False])
def test_one_at_a_time_is_alone_whether_the_lock_stays_or_goes(tmp_path, stays):
    here, most = [], []

    def enter(_: int) -> None:
        with alone(tmp_path / "lock", stays):
            here.append(threading.get_ident())
            most.append(len(here))
            here.pop()

    with ThreadPoolExecutor(8) as workers:
        list(workers.map(enter, range(300)))
    assert len(most) == 300 and max(most) == 1 and (tmp_path / "lock").exists() == stays


def test_who_fails_to_merge_leaves_file_and_lock_to_others(tmp_path):
    path = tmp_path / "r.json"
    merge_json(path, lambda there: {"a": 1})
    with pytest.raises(ZeroDivisionError):
        merge_json(path, lambda there: {"a": 1 / 0})
    assert merge_json(path, lambda there: {**there, "b": 2}) == {"a": 1, "b": 2}
