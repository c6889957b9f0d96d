"""Every view of real reports of Wukong and Kunlun is drawn without a complaint; their pictures are in the docs."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.report.pictures import MADE, take

pytestmark = [pytest.mark.browser, pytest.mark.slow]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reports():
    return {name: make() for name, make in MADE.items()}


def test_reports_of_real_models_fit_the_schema(reports, valid):
    for name, report in reports.items():
        assert valid(report) == [], name
    assert reports["wukong"]["verdict"]["lowered"] > 0 and reports["online"]["online"][0]["events"]


def test_pictures(reports, tmp_path):
    """LOKA_PICTURES=docs/img takes them for the docs."""
    folder = Path(os.environ.get("LOKA_PICTURES") or tmp_path)
    taken = take(folder, reports)
    shown = re.findall(r"img/(report_\w+\.png)", (ROOT / "docs" / "report.md").read_text())
    assert set(shown) <= {path.name for path in taken}
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 20_000 for path in taken)
