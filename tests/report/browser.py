"""A headless Chromium for tests: found, or said to be missing; and how a page in it is read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MISSING = (
    "no Chromium is installed, which the tests of the report's page drive. On Debian: apt-get install chromium; "
    "elsewhere set CHROMIUM to the path of a Chrome or Chromium"
)


def chromium() -> str:
    """Its path. Where there is none the test is skipped, and fails under CI=true."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None and os.environ.get("CI") == "true":
        pytest.fail(MISSING)
    return found or pytest.skip(MISSING)


@contextmanager
def browsing() -> Iterator[Any]:
    """A browser that runs as any user does in a container."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


class Page:
    """An opened page. complaints: of its console, and its errors; requests: everything it asked a network for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.page = browser.new_page(viewport={"width": 1440, "height": 900}, **options)
        self.page.set_default_timeout(60_000)  # a busy machine
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on(
            "console", lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else 0
        )
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda asked: self.requests.append(asked.url))
        self.page.goto(path.as_uri())

    def outside(self) -> list[str]:
        """Requests for anything but the file itself."""
        return [url for url in self.requests if not url.startswith(("file:", "data:"))]


def rows(page, section="view-sites"):
    return [
        row.inner_text() for row in page.query_selector_all(f"#{section} .table .row[aria-expanded] .cell:nth-child(2)")
    ]


def click(page, selector):
    """On an element of a graph, wherever it is scrolled to."""
    page.eval_on_selector(selector, "each => each.dispatchEvent(new MouseEvent('click', {bubbles: true}))")
