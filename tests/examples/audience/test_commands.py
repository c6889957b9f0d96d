"""The commands, from files to answers."""

import json
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.audience.__main__ import main
from examples.audience.client import Client
from tests.examples.audience.reach.population import files, table


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    paths = [str(path) for path in files(folder / "population", days=2, rows=2000)]
    named = ["--features", "country", "age", "premium", "device", "--numbers", "spend", "--measures", "click"]
    assert main(["build", *paths, *named, "--rows", "500", "--out", str(folder / "s")]) == 0
    return folder / "s"


def test_a_question(sample, capsys):
    assert main(["ask", "--sample", str(sample), "premium and age >= 3"]) == 0
    assert "rows of the sample" in capsys.readouterr().out
    asked = ["ask", "--sample", str(sample)]
    assert main([*asked, "everybody", "--by", "device", "--json"]) == 0
    lines = json.loads(capsys.readouterr().out)["by"]
    assert {line["group"] for line in lines} == {"phone", "tv", "web"}
    assert sum(line["value"] for line in lines) == pytest.approx(4000)
    assert main([*asked, "everybody"]) == 0
    assert capsys.readouterr().out.startswith("4,000 exactly, ")
    assert main([*asked, "country == 'DE' and country == 'FR'"]) == 0
    assert "0 exactly, 0 rows of the sample; no user has two values of 'country'" in capsys.readouterr().out
    assert main([*asked, "premium", "--of", "mean", "--measure", "click"]) == 0
    assert re.match(r"0\.\d+ \(0(\.\d+)? to 0\.\d+\), ", capsys.readouterr().out)


def test_a_curve_an_overlap_and_a_forecast(sample, capsys):
    asked = ["ask", "--sample", str(sample), "country == 'FR' and age in (5, 6)"]
    assert main([*asked, "--curve", "click"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["reach", "(95"] and "mean of click" in head and "does not matter" in lines[-1]
    assert all(re.search(r"\(.* to .*\)|exactly", line) for line in lines)
    assert main([*asked, "--curve", "click", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["points"][-1]["query"] == {"everybody": True}
    assert main([*asked, "--overlap", "premium"]) == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        *("in both", "in the first alone", "in the second alone", "both over either")
    ]
    for wrong, message in (
        (["--curve", "click", "--of", "users"], "no field 'of'"),
        (["--curve", "click", "--measure", "click"], "leave --measure out"),
        (["--days", "3"], "no field 'days'"),
        (["--overlap", "premium", "--measure", "click"], "no field 'measure'"),
        (["--forecast", "device"], "not written as 2026-11-29"),
        (["--category", "young"], "no source's quality is known here"),
        (["--holds", "errors"], "`holds` goes with"),
    ):
        assert main([*asked, *wrong]) == 2
        assert message in capsys.readouterr().err


def test_coming_days(tmp_path, capsys):
    days = [f"2026-06-{1 + i:02}" for i in range(21) for _ in range(30)]
    pq.write_table(pa.table({"day": days, "premium": [True] * len(days)}), tmp_path / "days.parquet")
    main(["build", str(tmp_path / "days.parquet"), "--features", "day", "premium", "--out", str(tmp_path / "s")])
    capsys.readouterr()
    assert main(["ask", "--sample", str(tmp_path / "s"), "premium", "--forecast", "day", "--days", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        *("2026-06-22: 30 (30 to 30)", "2026-06-23: 30 (30 to 30)"),
        "growth by week 0.0%, from 21 days, 2026-06-01 to 2026-06-21",
    ]


def test_serving_says_where_and_when_it_is_ready(sample):
    command = [sys.executable, "-m", "examples.audience", "serve", "--sample", str(sample), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as served:
        try:
            assert served.stdout.readline() == f"reading {sample} ...\n"
            ready = served.stdout.readline()
            address = re.match(r"ready: (http://127\.0\.0\.1:\d+/) ", ready)[1]
            with Client(address) as client:
                assert client.reach()["value"] > 0
        finally:
            served.terminate()


def test_a_refresh(sample, tmp_path, capsys):
    pq.write_table(table(3000, seed=5), tmp_path / "today.parquet")
    assert main(["refresh", str(tmp_path / "today.parquet"), "--out", str(sample)]) == 0
    assert "of 3,000 rows" in capsys.readouterr().out


def test_errors_are_one_line(sample, tmp_path, capsys):
    dates = tmp_path / "dates.parquet"
    pq.write_table(pa.table({"a": [1, 2], "day": pa.array([1, 2], pa.date32())}), dates)
    (tmp_path / "text.parquet").write_text("hello")
    for command in (
        ["ask", "--sample", str(sample), "contry == 'DE'"],
        ["ask", "--sample", str(tmp_path), "everybody"],
        ["build", str(tmp_path / "none.parquet"), "--features", "x", "--out", str(tmp_path / "s")],
        ["build", str(dates), "--features", "a", "--numbers", "day", "--out", str(tmp_path / "s")],
        ["build", str(dates), "--features", "a", "--numbers", "a", "--out", str(tmp_path / "s")],
        ["build", str(dates), "--out", str(tmp_path / "s")],
        ["build", str(dates), "--features", "a", "--out", str(tmp_path)],
        ["refresh", str(dates), "--out", str(sample)],
        ["refresh", str(dates), "--out", str(sample), "--rows", "-5"],
        ["refresh", str(tmp_path / "text.parquet"), "--out", str(sample)],
        ["quality", str(tmp_path / "none.parquet")],
    ):
        assert main(command) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_errors_are_one_line_from_other_processes_too(tmp_path, capsys):
    pytest.importorskip("ray")
    (tmp_path / "text.parquet").write_text("hello")
    assert (
        main(["build", str(tmp_path / "text.parquet"), "--features", "a", "--out", str(tmp_path / "s"), "--ray"]) == 2
    )
    line = capsys.readouterr().err.splitlines()[-1]  # others are Ray's
    assert line.startswith("audience build: ") and "text.parquet is no Parquet file that can be read" in line


def campaigns(path):
    counts = [[20, 50 + i, 30 - i] for i in range(20)]
    columns = {"campaign": list("abcdefghijklmnopqrst"), "acme:": [c[0] for c in counts]}
    columns |= {f"acme:{name}": [c[i + 1] for c in counts] for i, name in enumerate(("men", "women"))}
    columns |= {"share:men": [0.5 + i / 100 for i in range(20)], "share:women": [0.5 - i / 100 for i in range(20)]}
    pq.write_table(pa.table(columns), path)


def test_quality(tmp_path, capsys):
    campaigns(tmp_path / "c.parquet")
    bought = ["quality", str(tmp_path / "c.parquet"), "--out", str(tmp_path / "out"), "--buy"]
    assert main([*bought, "men", "--price", "0.5", "--value", "1"]) == 0
    out = capsys.readouterr().out
    assert "| acme |" in out and (tmp_path / "out" / "acme.png").exists()
    assert re.search(r"\| acme \| men \| \d\.\d\d .* \| (yes|no) \|", out)
    assert main([*bought, "men"]) == 2 and "--buy goes with --price and --value" in capsys.readouterr().err


def test_a_true_category(tmp_path, capsys):
    campaigns(tmp_path / "c.parquet")
    tags = ["men", "women", None, "men"] * 500
    pq.write_table(pa.table({"acme": tags, "premium": [True, False] * 1000}), tmp_path / "p.parquet")
    main(["build", str(tmp_path / "p.parquet"), "--features", "acme", "premium", "--out", str(tmp_path / "s")])
    capsys.readouterr()
    asked = ["ask", "--sample", str(tmp_path / "s"), "premium", "--campaigns", str(tmp_path / "c.parquet")]
    assert main([*asked, "--category", "men", "--holds", "errors"]) == 0
    corrected, tagged, *_ = capsys.readouterr().out.splitlines()
    assert re.match(r"\d+ \([\d.]+ to \d+\), 1,000 rows of the sample", corrected)
    assert tagged.startswith("by their tags alone: 500")
    assert main([*asked, "--category", "boys"]) == 2 and "no category 'boys'" in capsys.readouterr().err
    assert main([*asked, "--category", "men", "--of", "users"]) == 2
    assert "does not go with `of`: 'users'" in capsys.readouterr().err
    pq.write_table(pa.table({"other": tags}), tmp_path / "q.parquet")
    main(["build", str(tmp_path / "q.parquet"), "--features", "other", "--out", str(tmp_path / "t")])
    asked[2] = str(tmp_path / "t")
    assert main([*asked, "--category", "men"]) == 2
    assert "its sources are ['acme'], the sample's features ['other']" in capsys.readouterr().err
