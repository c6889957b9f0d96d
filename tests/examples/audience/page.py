"""The page, served in this process and opened in a browser.

python -m tests.examples.audience.page FILE.png   writes a picture of it over the census
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from examples.audience.reach.server import Front

CLICKED = """([selector, text]) => new Promise(resolve => {
  const button = [...document.querySelectorAll(selector)].find(each => each.textContent === text);
  const value = document.getElementById("value"), before = value.textContent;
  const seen = new MutationObserver(() => {
    if (value.textContent !== before) { seen.disconnect(); resolve(performance.now() - began); }
  });
  seen.observe(value, {childList: true, characterData: true, subtree: true});
  const began = performance.now();
  button.click();
})"""
"""Clicks a button; gives the milliseconds until the number has moved."""


@contextmanager
def served(front: Front) -> Iterator[str]:
    """Its address."""
    server = uvicorn.Server(uvicorn.Config(front.app(), host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join()


def click(page: Any, feature: str, value: str) -> float:
    """Milliseconds from the click to the number."""
    return page.evaluate(CLICKED, [f'button[data-feature="{feature}"]', value])


def picture(path: Path) -> None:
    from examples.audience import data
    from examples.audience.reach.build import build
    from examples.audience.reach.columns import Columns
    from examples.audience.reach.counters import Local
    from examples.audience.reach.estimator import Estimator
    from tests.report.browser import browsing

    with tempfile.TemporaryDirectory() as folder, browsing() as browser:
        census = data.adult(Path(folder))
        build([census], Columns(data.ADULT.features, data.ADULT.numbers), Path(folder) / "s", 5000)
        with served(Front(Estimator(Local(Path(folder) / "s")))) as address:
            page = browser.new_page(viewport={"width": 1060, "height": 900})
            page.goto(address)
            page.wait_for_selector("button[data-feature=education]")
            chosen = [("education", "Bachelors"), ("education", "Masters"), ("gender", "Female")]
            chosen += [("occupation", "Exec-managerial"), ("marital-status", "Never-married")]
            moved = [click(page, *each) for each in chosen]
            print("milliseconds from click to number:", ", ".join(f"{each:.0f}" for each in moved))
            path.parent.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=str(path))


if __name__ == "__main__":
    picture(Path(sys.argv[1]))
