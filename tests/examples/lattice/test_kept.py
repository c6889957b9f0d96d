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


def test_two_with_one_file_keep_each_others_seeds(tmp_path):
    path = tmp_path / "r.json"
    first, second = Kept(path, {"rate": 0.1}), Kept(path, {"rate": 0.1})
    first.add("p", 1, {"a": 0.1})
    second.more["two"] = {"of": "second"}
    second.add("q", 1, {"a": 0.2})
    second.add("p", 2, {"a": 0.3})
    first.more = {"one": 1, "shape": (1, 2)}
    first.write()
    assert first.runs("p", 2) == {"a": [0.1, 0.3]} and list(first.left("q", 1)) == []
    again = Kept(path, {"rate": 0.1})
    assert again.runs("p", 2) == {"a": [0.1, 0.3]} and again.runs("q", 1) == {"a": [0.2]}
    assert again.more == {"two": {"of": "second"}, "one": 1, "shape": [1, 2]}
    assert [each.name for each in tmp_path.iterdir()] == ["r.json"]


def test_what_another_has_changed_is_not_put_back(tmp_path):
    """A stage that another process has made anew, with other options, stays as it is."""
    path = tmp_path / "r.json"
    first = Kept(path, {})
    first.more["stage"] = {"options": 1}
    first.write()
    second = Kept(path, {})
    second.more["stage"] = {"options": 2}
    second.write()
    first.add("p", 1, {"a": 1})
    assert Kept(path, {}).more == {"stage": {"options": 2}}
    first.more["stage"]["options"] = 3  # in place
    first.write()
    assert Kept(path, {}).more == {"stage": {"options": 3}}
    path.unlink()
    first.write()  # all that it knows
    assert Kept(path, {}).runs("p", 1) == {"a": [1]} and Kept(path, {}).more == {"stage": {"options": 3}}


def test_a_file_that_another_has_begun_with_other_settings_is_not_overwritten(tmp_path):
    path = tmp_path / "r.json"
    first, second = Kept(path, {"rate": 0.1}), Kept(path, {"rate": 0.2})
    first.add("p", 1, {"a": 0.1})
    with pytest.raises(DataError, match="figures of other settings"):
        second.add("p", 1, {"a": 0.2})
    assert Kept(path, {"rate": 0.1}).runs("p", 1) == {"a": [0.1]}


@pytest.mark.parametrize(
    "body",
    [
        "[]",
        "7",
        '{"settings": {}}',
        '{"settings": {}, "runs": [], "more": {}}',
        '{"settings": {}, "runs": {"p": 1}, "more": {}}',
        '{"settings": {}, "runs": {}, "more": 1}',
    ],
)
def test_a_file_of_something_else_is_named(tmp_path, body):
    (tmp_path / "r.json").write_text(body)
    with pytest.raises(DataError, match=r"r\.json cannot be read.*delete it"):
        Kept(tmp_path / "r.json", {})
    with pytest.raises(DataError, match=r"r\.json (cannot be read|holds figures of other settings)"):
        Kept(tmp_path / "r.json", {"rate": 1})


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
