"""The commands, from files to answers."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.audience.__main__ import main
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
    assert main(["ask", "--sample", str(sample), "everybody", "--by", "device", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["value of"] for line in lines} == {"phone", "tv", "web"}
    assert sum(line["value"] for line in lines) == pytest.approx(4000)
    assert main(["ask", "--sample", str(sample), "country == 'FR' and age in (5, 6)", "--curve", "click"]) == 0
    assert "does not matter" in capsys.readouterr().out


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


def test_quality(tmp_path, capsys):
    counts = [[20, 50 + i, 30 - i] for i in range(20)]
    columns = {"campaign": list("abcdefghijklmnopqrst"), "acme:": [c[0] for c in counts]}
    columns |= {f"acme:{name}": [c[i + 1] for c in counts] for i, name in enumerate(("men", "women"))}
    columns |= {"share:men": [0.5 + i / 100 for i in range(20)], "share:women": [0.5 - i / 100 for i in range(20)]}
    pq.write_table(pa.table(columns), tmp_path / "c.parquet")
    assert main(["quality", str(tmp_path / "c.parquet"), "--out", str(tmp_path / "out")]) == 0
    assert "| acme |" in capsys.readouterr().out and (tmp_path / "out" / "acme.png").exists()
