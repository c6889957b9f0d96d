"""The page in a browser: criteria are clicked together, and the numbers are those of the API, at once."""

import re

import numpy as np
import pytest

from examples.audience.reach.build import build
from examples.audience.reach.counters import Local
from examples.audience.reach.estimator import Estimator, Question
from examples.audience.reach.query import And, Everybody, In, Range
from examples.audience.reach.server import Front
from tests.examples.audience.page import click, served
from tests.examples.audience.reach.population import COLUMNS, files
from tests.report.browser import browsing

pytestmark = pytest.mark.browser
MOST = 100
"""Milliseconds from a click to the number, the middle of many clicks."""


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    build(files(folder / "population", days=2, rows=6000), COLUMNS, folder / "s", 2000)
    estimator = Estimator(Local(folder / "s"))
    with served(Front(estimator)) as address, browsing() as browser:
        page = browser.new_page()
        page.set_default_timeout(60_000)
        complaints = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.goto(address)
        page.wait_for_function("document.querySelectorAll('button[data-feature]').length > 0")
        yield page, estimator, complaints


def shows(page, expected):
    """Whether the page comes to show the number and its ends; they follow a choice a moment later."""
    for _ in range(600):
        number, ends = page.text_content("#value"), page.text_content("#range").partition(":")[2]
        found = [float(each.replace(",", "")) for each in (number, *re.findall(r"[\d.,]*\d", ends)) if each != "…"]
        if found == pytest.approx(expected, rel=0.01):
            return True
        page.wait_for_timeout(50)
    return False


def answered(estimator, *parts):
    found = estimator.reach(Question(And(parts) if parts else Everybody()))
    return [found.value, found.low, found.high]


def test_what_is_clicked_is_what_is_asked(opened):
    page, estimator, complaints = opened
    assert shows(page, [12_000] * 3)
    click(page, "country", "DE")
    click(page, "country", "JP")
    click(page, "premium", "true")
    both, premium = In("country", ("DE", "JP")), In("premium", (True,))
    assert shows(page, answered(estimator, both, premium))
    assert page.get_attribute('button[data-feature="country"]:text-is("DE")', "aria-pressed") == "true"
    page.select_option('select[aria-label="spend from"]', index=4)
    low = estimator.schema.number("spend").edges[3]
    assert shows(page, answered(estimator, both, premium, Range("spend", low)))
    click(page, "country", "JP")  # once more takes it back
    assert shows(page, answered(estimator, In("country", ("DE",)), premium, Range("spend", low)))
    page.click("#clear")
    assert shows(page, [12_000] * 3)
    assert not complaints


def test_numbers_move_at_once(opened):
    page = opened[0]
    moved = [click(page, "age", str(i % 7)) for i in range(21)]
    assert np.median(moved) < MOST, moved


def test_a_server_that_is_gone_is_said(opened):
    page = opened[0]
    page.route("**/v1/reach", lambda route: route.fulfill(status=503, body='{"error": "no counter answered"}'))
    page.click('button[data-feature="device"] >> nth=0')
    page.wait_for_function("document.getElementById('error').textContent.includes('no counter answered')")
    page.unroute("**/v1/reach")
