"""The commands, from nothing to results."""

import json
from dataclasses import replace

import pytest

from examples.exfm.__main__ import main
from examples.exfm.stream.drift import Drift
from examples.exfm.stream.log import write
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
    calls = results["stream"]["counters"]["teacher_calls"]
    assert f"calls per unique example: 1.0000 ({calls:,} for {calls:,}" in out and "of 9,600 examples" in out
    assert "stories-early" in out and results["stream"]["plan"]["size.width"] == 8


@pytest.mark.parametrize("arm", ARMS[:1])
def test_other_students_go_to_another_folder(work, capsys, arm):
    other = ["--work", str(work), "--out", str(work / arm)]
    assert main(["train", *other, "--arm", arm]) == 0 and main(["evaluate", *other]) == 0
    assert (work / arm / "ne.png").exists()
    assert main(["train", "--work", str(work), "--arm", arm]) == 2
    assert "holds other students" in capsys.readouterr().err


def test_replay_plays_at_a_speed(work):
    assert main(["replay", "--work", str(work), "--data", "drift", "--speed", "1e9"]) == 0


def test_errors_are_one_line(tmp_path, capsys):
    for command in ("score", "train", "evaluate"):
        assert main([command, "--work", str(tmp_path)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_options_that_change_what_is_there_are_refused(work, capsys):
    for command in (
        ["score", "--work", str(work), "--size", "tiny", "--delay", "2"],
        ["run", "--work", str(work), "--size", "small"],
        ["run", "--work", str(work), "--data", "movielens"],
        ["replay", "--work", str(work), "--data", "drift", "--days", "3"],
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "give another folder" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "option, value, words",
    [
        ("--batch", "0", "at least 1"),
        ("--actors", "-1", "at least 0"),
        ("--period", "0", "more than 0"),
        ("--speed", "0", "more than 0"),
        ("--delay", "-1", "at least 0"),
        ("--delay", "nan", "at least 0"),
        ("--alpha", "0", "more than 0"),
        ("--days", "0", "at least 1"),
        ("--days", "1.5", "no whole number"),
        ("--students", "feed:last", "a stage of retrieval, early, late"),
    ],
)
def test_values_that_make_no_sense_are_refused(tmp_path, capsys, option, value, words):
    with pytest.raises(SystemExit):
        main(["run", "--work", str(tmp_path), option, value])
    assert words in capsys.readouterr().err


def test_a_shared_head_has_no_beta(work, capsys):
    command = ["train", "--work", str(work), "--out", str(work / "shared"), "--arm", "shared", "--beta", "5"]
    assert main(command) == 2 and "leave beta at 1" in capsys.readouterr().err


def test_it_says_when_every_day_is_left_out(work, capsys):
    assert main(["evaluate", "--work", str(work), "--skip", "2"]) == 0
    assert "give a smaller --skip" in capsys.readouterr().err


def test_ctrl_c_is_a_line(work, capsys, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("examples.exfm.train.Run.take", stopped)
    assert main(["train", "--work", str(work), "--out", str(work / "stopped")]) == 130
    assert capsys.readouterr().err == "exfm train: stopped; the same command goes on\n"


def test_a_log_of_ones_own_has_students_too(tmp_path):
    mine = replace(Drift(hours=30, rate=60), verticals=("home", "mail"))
    write(tmp_path / "log", mine.schema, mine.events())
    chosen = ["--students", "mail:early"]
    for out, options in (("all", []), ("one", chosen)):
        command = ["run", "--work", str(tmp_path), "--out", str(tmp_path / out), "--size", "tiny", "--skip", "0"]
        assert main([*command, "--arm", "auxiliary", *options]) == 0
    names = [set(json.loads((tmp_path / out / "train.json").read_text())["students"]) for out in ("all", "one")]
    assert names == [{"home-late", "mail-late"}, {"mail-early"}]
