"""The commands, from nothing to results."""

import json

import pytest

from examples.exfm.__main__ import main
from examples.exfm.students import ARMS


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    small = ["--data", "drift", "--days", "2", "--size", "tiny", "--skip", "1"]
    assert main(["run", "--work", str(folder), *small]) == 0
    return folder


def without_seconds(path):
    """The results; what going on took is added to the seconds of each student."""
    results = json.loads(path.read_text())
    for student in results["students"].values():
        student.pop("seconds")
    return results


def test_run_is_all_of_it_and_goes_on(work, capsys):
    results = json.loads((work / "students" / "results.json").read_text())
    assert set(results["students"]) == {"feed-late", "stories-early", "search-retrieval"}
    assert results["stream"]["counters"]["examples"] == 2 * 24 * 200
    assert results["teacher"]["cost"]["calls_per_example"] == 1.0
    before = without_seconds(work / "students" / "results.json")
    assert main(["run", "--work", str(work), "--data", "drift", "--size", "tiny", "--skip", "1"]) == 0
    assert without_seconds(work / "students" / "results.json") == before
    out = capsys.readouterr().out
    assert "calls per unique example: 1.0000" in out and "stories-early" in out


@pytest.mark.parametrize("arm", ARMS[:1])
def test_other_students_go_to_another_folder(work, capsys, arm):
    other = ["--work", str(work), "--out", str(work / arm)]
    assert main(["train", *other, "--arm", arm]) == 0 and main(["evaluate", *other, "--size", "tiny"]) == 0
    assert (work / arm / "ne.png").exists()
    assert main(["train", "--work", str(work), "--arm", arm]) == 2
    assert "holds other students" in capsys.readouterr().err


def test_replay_plays_at_a_speed(work):
    assert main(["replay", "--work", str(work), "--data", "drift", "--speed", "1e9"]) == 0


def test_errors_are_one_line(tmp_path, capsys):
    for command in ("score", "train", "evaluate"):
        assert main([command, "--work", str(tmp_path)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
