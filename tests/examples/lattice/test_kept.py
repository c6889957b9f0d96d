"""A bench that was stopped goes on where it was."""

from __future__ import annotations

import pytest

from examples.lattice.data import DataError
from examples.lattice.kept import Kept


def test_a_stopped_bench_goes_on(tmp_path):
    path = tmp_path / "r.json"
    first = Kept(path, {"rate": 0.1, "windows": (1, 2)})
    for seed in first.left("p", 3):
        first.add("p", seed, {"a": {"auc": seed / 10}})
        if seed == 2:
            break
    second = Kept(path, {"rate": 0.1, "windows": (1, 2)})
    assert list(second.left("p", 3)) == [3] and list(second.left("q", 2)) == [1, 2]
    second.add("p", 3, {"a": {"auc": 0.3}})
    assert second.runs("p", 3) == {"a": [{"auc": 0.1}, {"auc": 0.2}, {"auc": 0.3}]}
    assert [each.name for each in tmp_path.iterdir()] == ["r.json"]
    with pytest.raises(DataError, match="figures of other settings"):
        Kept(path, {"rate": 0.2, "windows": (1, 2)})


def test_without_a_file_nothing_is_written():
    kept = Kept(None, {})
    kept.add("p", 1, {"a": 1})
    assert kept.runs("p", 1) == {"a": [1]}
