"""What README.md shows is what runs: its queries, its requests, its Python."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.audience.client import Client, Refused
from examples.audience.quality.table import read, sources_of
from examples.audience.reach.asking import FIELDS
from examples.audience.reach.build import build
from examples.audience.reach.counters import Local
from examples.audience.reach.estimator import Estimator
from examples.audience.reach.query import from_json
from examples.audience.reach.server import Front
from examples.audience.reach.text import from_text
from tests.examples.audience.page import served
from tests.examples.audience.quality.test_report import columns
from tests.examples.audience.reach.population import COLUMNS, table

README = (Path(__file__).parents[3] / "examples" / "audience" / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)
REFUSED = {'of="users"': "users cannot be counted", 'truth="corrected"': "no source's quality"}
"""Lines that need another sample than the one here."""


def section(title):
    return README.split(f"### {title}\n")[1].split("\n#")[0]


def cells(text, column):
    return [line.split(" | ")[column] for line in text.splitlines() if line.startswith("| ") and "---" not in line]


def test_queries_are_read():
    spelled = [each for cell in cells(section("Queries"), 0) for each in re.findall(r"`([^`]+)`", cell)]
    texts = [each for each in spelled if "..." not in each and not each.startswith("{")]
    data = [json.loads(each) for each in spelled if each.startswith("{") and "..." not in each]
    assert len([from_text(each) for each in texts]) > 12 and len([from_json(each) for each in data]) >= 4


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    day = pa.array([f"2026-06-{1 + i % 21:02}" for i in range(4000)])
    pq.write_table(table(4000).append_column("day", day), folder / "p.parquet")
    build([folder / "p.parquet"], replace(COLUMNS, features=(*COLUMNS.features, "day")), folder / "s", 1000)
    with served(Front(Estimator(Local(folder / "s")))) as address:
        yield address


def test_requests_are_answered(address):
    lines = [shlex.split(line) for line in README.splitlines() if line.startswith("curl ")]
    assert len(lines) == 3
    with Client(address) as client:
        for line in lines:
            path = line[2].partition("/")[2]
            assert client._send("POST", f"/{path}", content=line[line.index("-d") + 1])


def test_every_field_is_named():
    endpoints = dict(zip(cells(section("Asking"), 0), cells(section("Asking"), 1), strict=True))
    for what, fields in FIELDS.items():
        assert set(fields) <= set(re.findall(r"`(\w+)`", endpoints[f"| `/v1/{what}`"])), what


def test_the_clients_lines_run(address):
    _, _, _, *lines = PYTHON[0].strip().splitlines()
    with Client(address) as client:
        for line in lines:
            message = next((words for part, words in REFUSED.items() if part in line), None)
            if message is None:
                eval(line.strip(), {"audience": client})
            else:
                with pytest.raises(Refused, match=message):
                    eval(line.strip(), {"audience": client})


def test_users_are_chosen_and_forecast(tmp_path, monkeypatch):
    pq.write_table(pa.table(columns()), tmp_path / "campaigns.parquet")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(PYTHON[1], names)
    assert len(names["chances"]) == 4


def test_the_file_of_campaigns_is_read(tmp_path):
    rows = re.search(r"\| campaign \|.*?\n\n", README, re.S)[0].splitlines()
    values = [[cell.strip() for cell in row.strip("| ").split("|")] for row in rows if row and "---" not in row]
    (tmp_path / "c.csv").write_text("\n".join(",".join(row) for row in values))
    assert sources_of(tmp_path / "c.csv") == ["acme"]
    assert read(tmp_path / "c.csv", "acme").categories == ("young", "old")
