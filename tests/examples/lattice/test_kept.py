"""A bench that was stopped goes on where it was."""

from __future__ import annotations

import pytest

from examples.lattice.data import DataError
from examples.lattice.kept import Kept, bench_parser


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


def test_a_folder_is_made_before_anything_is_measured(tmp_path):
    Kept(tmp_path / "new" / "deep" / "r.json", {})
    assert (tmp_path / "new" / "deep").is_dir()


@pytest.mark.parametrize("body", ["", "{", "[1"])
def test_a_damaged_file_is_named(tmp_path, body):
    (tmp_path / "r.json").write_text(body)
    with pytest.raises(DataError, match=r"r\.json cannot be read.*delete it"):
        Kept(tmp_path / "r.json", {})


def test_a_bench_has_a_seed_at_least(capsys):
    with pytest.raises(SystemExit):
        bench_parser("").parse_args(["--seeds", "0"])
    assert "expected 1 or more, got 0" in capsys.readouterr().err


def test_without_a_file_nothing_is_written():
    kept = Kept(None, {})
    kept.add("p", 1, {"a": 1})
    assert kept.runs("p", 1) == {"a": [1]}
