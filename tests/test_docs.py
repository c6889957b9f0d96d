"""The Python in README.md and docs/ runs, page by page, in a fresh folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from loka_compile.kernels.providers import PROVIDERS
from loka_compile.passes import PIPELINE

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name if page.parent == ROOT else f"docs-{page.name}")
def test_the_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch._dynamo.reset()
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M)
    namespace: dict[str, object] = {"__name__": page.stem}
    for block in blocks:
        exec(compile(block, str(page), "exec"), namespace)


def test_files_that_are_named_are_there() -> None:
    for page in PAGES:
        written = re.findall(r"^```python (\S+)$", page.read_text(), re.M)  # CONTRIBUTING.md has a reader write these
        for name in re.findall(r"`([\w/]+/[\w/]+\.py)`", page.read_text()):
            there = (ROOT / name).exists() or (ROOT / "loka_compile" / name).exists() or name in written
            assert there or name.startswith("torchao/"), f"{page.name} names {name}"


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_pass_and_every_provider_has_a_row() -> None:
    for page, names in (("passes.md", PIPELINE.names), ("dispatch.md", PROVIDERS)):
        rows = re.findall(r"^\| (`[^|]*`) \|", (ROOT / "docs" / page).read_text(), re.M)
        told = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
        assert set(names) <= told, f"docs/{page} has no row for {', '.join(set(names) - told)}"
