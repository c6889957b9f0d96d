"""The page in a browser: criteria are clicked together, and the numbers are those of the API, at once."""

import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.audience.reach.build import build
from examples.audience.reach.counters import Local
from examples.audience.reach.estimator import Estimator, Question
from examples.audience.reach.query import And, Everybody, In, Range
from examples.audience.reach.server import Front
from tests.examples.audience.page import click, served
from tests.examples.audience.reach.population import COLUMNS, table
from tests.report.browser import browsing

pytestmark = pytest.mark.browser
MOST = 100
"""Milliseconds from a click to the number, the middle of many clicks."""


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    made = table(12_000)
    made = made.append_column("city", pa.array([f"city {1 + i % 80}" for i in range(12_000)]))
    pq.write_table(made, folder / "p.parquet")
    columns = replace(COLUMNS, features=(*COLUMNS.features, "city"))
    build([folder / "p.parquet"], columns, folder / "s", 2000)
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
        ends = [number] * 2 if page.text_content("#range") == "exactly" else re.findall(r"[\d.,]*\d", ends)
        found = [float(each.replace(",", "")) for each in (number, *ends) if each not in "…?"]
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
    assert page.text_content("#value") == "?" and not page.text_content("#range") + page.text_content("#detail")
    page.unroute("**/v1/reach")
    page.click("#clear")
    assert shows(page, [12_000] * 3)


def test_long_lists_are_in_the_order_of_their_numbers_and_are_searched(opened):
    page, estimator, _ = opened
    cities = 'button[data-feature="city"]'
    assert page.locator(cities).all_text_contents() == [f"city {i}" for i in range(1, 61)]
    page.fill('input[aria-label="search city"]', "Y 7")
    assert page.locator(cities).all_text_contents() == ["city 7", *(f"city {i}" for i in range(70, 80))]
    click(page, "city", "city 75")
    assert shows(page, answered(estimator, In("city", ("city 75",))))
    page.fill('input[aria-label="search city"]', "")
    assert page.locator(cities).all_text_contents() == [*(f"city {i}" for i in range(1, 61)), "city 75"]
    page.click("#clear")
    assert page.locator(f"{cities}[aria-pressed=true]").count() == 0


def test_no_range_is_offered_that_holds_nothing(opened):
    page = opened[0]
    page.select_option('select[aria-label="spend from"]', index=5)
    closed = page.locator('select[aria-label="spend to"] option').evaluate_all("all => all.map(each => each.disabled)")
    assert closed == [False] + [True] * 5 + [False] * (len(closed) - 6)
    page.click("#clear")
    assert page.locator("option:disabled").count() == 0


def test_the_answer_is_in_sight_on_a_telephone(opened):
    page = opened[0]
    page.set_viewport_size({"width": 390, "height": 700})
    try:
        for top in (0, 1000):
            page.evaluate(f"scrollTo(0, {top})")
            box = page.locator("#value").bounding_box()
            assert 0 <= box["y"] < 350, box
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    finally:
        page.set_viewport_size({"width": 1280, "height": 720})
