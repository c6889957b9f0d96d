"""Campaigns from files, and the report on them."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from examples.audience.quality.report import judge, pictures_of, write
from examples.audience.quality.table import TableError, read, sources_of
from loka_compile.sampling.intervals import Bootstrap
from tests.examples.audience.quality.drawn import TRUTH, simulate

NAMES = ("young", "middle", "old")


def columns(campaigns=16, sources=("acme", "other")):
    found = {"campaign": [f"c{i}" for i in range(campaigns)], "vertical": ["news", "sport"] * (campaigns // 2)}
    for seed, source in enumerate(sources):
        data = simulate(TRUTH if source == "acme" else TRUTH * 0.4 + 0.2, campaigns, 2000, 0)
        for a, name in enumerate(("", *NAMES)):
            found[f"{source}:{name}"] = np.rint(data.mixes[:, a] * 2000).astype(int)
        for c, name in enumerate(NAMES):
            found.setdefault(f"share:{name}", data.reports[:, c])
        assert seed < 2
    return found


@pytest.fixture
def file(tmp_path):
    pyarrow.parquet.write_table(pa.table(columns()), tmp_path / "campaigns.parquet")
    return tmp_path / "campaigns.parquet"


def test_csv_and_parquet_say_the_same(file):
    pyarrow.csv.write_csv(pyarrow.parquet.read_table(file), file.with_suffix(".csv"))
    one, other = read(file, "acme"), read(file.with_suffix(".csv"), "acme")
    assert np.allclose(one.data.mixes, other.data.mixes) and np.allclose(one.data.reports, other.data.reports)
    assert one.categories == NAMES and one.verticals[:2] == ("news", "sport")
    assert sources_of(file) == ["acme", "other"]


def test_the_report_has_every_source_and_its_pictures(file, tmp_path):
    report = judge(file, Bootstrap(20))
    text = write(report, tmp_path / "out").read_text()
    assert "| acme |" in text and "![Q of other](other.png)" in text and "p = " in text
    assert (tmp_path / "out" / "acme.png").stat().st_size > 1000
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["ranking"][0]["source"] in ("acme", "other")
    q = np.array(found["sources"]["acme"]["methods"]["constrained_regression"]["q"])
    assert np.abs(q - TRUTH).max() < 0.15


def broken(change):
    table = columns()
    change(table)
    return table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("acme:old"), r"no columns \['acme:old'\].*sources are \['acme', 'other'\]"),
        (lambda t: t.update(campaign=["c"] * 16), "campaign 'c' occurs twice"),
        (lambda t: t.update({"acme:old": ["x"] * 16}), "'acme:old' holds string; numbers"),
        (lambda t: t.update({"acme:old": [None, *range(15)]}), "no value for campaign 'c0'"),
        (lambda t: t.update({"share:old": [0.9] * 16}), "campaign 'c0' sum to .* not 1$"),
        (
            lambda t: t.update({f"share:{n}": [100 * x for x in t[f"share:{n}"]] for n in NAMES}),
            "fractions, 0.25 and not 25",
        ),
        (lambda t: t.update({"acme:none": t.pop("acme:")}), "no columns .'acme:'.*`acme:` is for the untagged"),
        (lambda t: t.pop("campaign"), "no columns .'campaign'"),
        (lambda t: [t.pop(f"share:{name}") for name in NAMES], "no two columns `share:<category>`"),
    ],
)
def test_a_bad_file_names_the_column_and_the_campaign(change, message, tmp_path):
    pyarrow.parquet.write_table(pa.table(broken(change)), tmp_path / "bad.parquet")
    with pytest.raises(TableError, match=message):
        read(tmp_path / "bad.parquet", "acme")


def test_no_file_and_no_parquet_are_errors(tmp_path):
    with pytest.raises(TableError, match="there is no file"):
        read(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(TableError, match="no Parquet file"):
        read(tmp_path / "text.parquet")


def test_names_of_any_kind_stay_in_the_folder(tmp_path):
    table = {name.replace("acme", "../es|caped").replace("other", "a/b"): own for name, own in columns().items()}
    table = {name.replace("old", "$x_$^"): own for name, own in table.items()} | {"time:utc": ["now"] * 16}
    pyarrow.parquet.write_table(pa.table(table), tmp_path / "c.parquet")
    assert sources_of(tmp_path / "c.parquet") == ["../es|caped", "a/b"]
    text = write(judge(tmp_path / "c.parquet", Bootstrap(5)), tmp_path / "in" / "out").read_text()
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        "c.parquet",
        *(f"in/out/{each}" for each in ("_es_caped.png", "a_b.png", "report.md", "report.json")),
    }
    assert "![Q of a/b](a_b.png)" in text and "| ../es\\|caped |" in text


def test_pictures_have_names_of_their_own():
    names = ["a/b", "a_b", "A b", "acme", "..", "", "../.."]
    found = pictures_of(names)
    assert found["acme"] == "acme.png" and list(found) == names
    assert len({each.lower() for each in found.values()}) == len(names)


def test_a_file_without_a_source_is_an_error(tmp_path):
    table = {name: own for name, own in columns().items() if name.partition(":")[0] not in ("acme", "other")}
    pyarrow.parquet.write_table(pa.table(table), tmp_path / "c.parquet")
    with pytest.raises(TableError, match="has no source"):
        judge(tmp_path / "c.parquet")
