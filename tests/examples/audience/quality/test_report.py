"""Campaigns from files, and the report on them."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from examples.audience.quality.campaigns import Campaigns
from examples.audience.quality.report import judge, markdown, pictures_of, to_json, write
from examples.audience.quality.table import TableError, read, sources_of
from loka_compile.sampling.intervals import Bootstrap
from tests.examples.audience.quality.drawn import TRUTH, err, guessing, joined, simulate

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


def written(tmp_path, data):
    """A file of sources' campaigns, all with the first one's reports."""
    first = next(iter(data.values()))
    found = {"campaign": [f"c{i}" for i in range(len(first.sizes))], "users": first.sizes}
    found["vertical"] = ["news", "sport"] * (len(first.sizes) // 2)
    found |= {f"share:{name}": first.reports[:, c] for c, name in enumerate(NAMES)}
    for source, own in data.items():
        counts = np.rint(own.mixes * own.users[:, None]).astype(int)
        found |= {f"{source}:{name}": counts[:, a] for a, name in enumerate(("", *NAMES))}
    pyarrow.parquet.write_table(pa.table(found), tmp_path / "made.parquet")
    return tmp_path / "made.parquet"


def test_a_vendor_that_is_right_for_60_percent_is_not_said_to_be_always_right(tmp_path):
    vendors = {"acme": err(guessing(0.8, 0.25), 40, 4000, 1000, 5), "bolt": err(guessing(0.6, 0.1), 40, 4000, 1000, 5)}
    report = judge(
        written(tmp_path, {name: replace(own, reports=vendors["acme"].reports) for name, own in vendors.items()})
    )
    assert [place.source for place in report.places] == ["acme", "bolt"]
    assert [place.score.value for place in report.places] == pytest.approx([0.8, 0.6], abs=0.02)
    text = markdown(report)
    assert "P(tag given truth)" in text and "1.000 (1.000 to 1.000)" not in text and "neither" not in text
    assert "no reason to doubt that how the source errs is the same everywhere" in text
    assert to_json(report)["sources"]["bolt"]["assumption"]["holds"] == "errors"


def test_what_no_assumption_fits_is_said_first(tmp_path):
    mixed = [simulate(q, 20, 5000, seed) for seed, q in enumerate((TRUTH, TRUTH[[0, 2, 1, 3]]))]
    data = joined(mixed)
    order = np.argsort(np.arange(40) % 20, kind="stable")  # both kinds in either vertical
    order = order[[*range(0, 40, 4), *range(1, 40, 4), *range(2, 40, 4), *range(3, 40, 4)]]
    report = judge(written(tmp_path, {"odd": Campaigns(*(each[order] for each in vars(data).values()))}), Bootstrap(40))
    text = markdown(report)
    assert (
        text.index("bear out neither assumption") < text.index("| place |")
        and "| ? 1 (1 to 1) | odd | neither |" in text
    )
    assert "not known" in text and "no reason to doubt" not in text
    assert not to_json(report)["ranking"][0]["sure"]
    low, high = to_json(report)["sources"]["odd"]["methods"]["constrained_regression"]["scores"]["accuracy"][1:]
    assert high - low > 0.3  # nor is a method that does not fit sure of itself


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
