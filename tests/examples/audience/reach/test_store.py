"""Samples that are swapped in whole, by several at once."""

import os
import threading

import pytest

from examples.audience.reach import store
from examples.audience.reach.build import build
from examples.audience.reach.columns import Columns
from tests.examples.audience.reach.population import files


def test_several_may_write_the_same_sample(tmp_path):
    paths = files(tmp_path / "population", days=1, rows=300)
    errors = []

    def swap(number):
        for turn in range(25):
            made = tmp_path / f".s.{number}.{turn}"
            made.mkdir()
            (made / "whose").write_text(f"{number} {turn}")
            try:
                with store._alone(tmp_path):
                    store._swap(made, tmp_path / "s")
            except OSError as error:
                errors.append(error)

    threads = [threading.Thread(target=swap, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not errors and sorted(os.listdir(tmp_path)) == ["population", "s"]
    build(paths, Columns(("age",)), tmp_path / "s", 100)
    assert store.load(tmp_path / "s").rows == 100 and sorted(os.listdir(tmp_path)) == ["population", "s"]


def test_a_swap_that_fails_leaves_the_old_sample(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "old").touch()
    with pytest.raises(OSError):
        store._swap(tmp_path / "none", tmp_path / "s")
    assert os.listdir(tmp_path) == ["s"] and os.listdir(tmp_path / "s") == ["old"]
