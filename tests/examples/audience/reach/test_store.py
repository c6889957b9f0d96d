"""Samples that are swapped in whole, by several at once."""

import os
import threading
import time
from pathlib import Path

import pytest

from examples.audience.reach import store
from examples.audience.reach.build import build
from examples.audience.reach.columns import Columns
from examples.audience.reach.schema import AudienceError
from tests.examples.audience.reach.population import files


def test_several_may_write_the_same_sample(tmp_path, monkeypatch):
    path = files(tmp_path / "population", days=1, rows=30)[0]
    rename, errors = Path.rename, []

    def slowly(own, target):
        time.sleep(0.05)
        return rename(own, target)

    def several(number):
        for turn in range(3):
            try:
                build([path], Columns(("age",)), tmp_path / "s", 10 + number + turn, shards=1)
            except Exception as error:
                errors.append(error)

    monkeypatch.setattr(Path, "rename", slowly)
    threads = [threading.Thread(target=several, args=(number,)) for number in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not errors and 12 <= store.load(tmp_path / "s").rows <= 14
    assert sorted(os.listdir(tmp_path)) == ["population", "s"]  # nothing aside is left


def test_what_is_no_sample_is_not_replaced(tmp_path):
    path = files(tmp_path / "population", days=1, rows=30)[0]
    (tmp_path / "notes").write_text("mine")
    for folder in (tmp_path / "population", tmp_path / "notes"):
        with pytest.raises(AudienceError, match=f"{folder} is there and holds no sample.*name another folder"):
            build([path], Columns(("age",)), folder, 10)
    assert path.exists() and (tmp_path / "notes").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert build([path], Columns(("age",)), tmp_path / "empty", 10).rows == 10
    for seed, shards, message in ((-1, 1, "a seed is"), (2**64, 1, "a seed is"), (0, 0, "at least 1 shard")):
        with pytest.raises(AudienceError, match=message):
            build([path], Columns((), user="age"), tmp_path / "s", 10, seed=seed, shards=shards)


def test_a_swap_that_fails_leaves_the_old_sample(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "old").touch()
    with pytest.raises(OSError):
        store._swap(tmp_path / "none", tmp_path / "s")
    assert os.listdir(tmp_path) == ["s"] and os.listdir(tmp_path / "s") == ["old"]
