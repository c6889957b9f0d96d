"""The page: whole, safe, small, and nothing from a network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest

from loka_compile.report.page import SCRIPTS, STYLES, embedded, html
from loka_compile.spec.plan import Plan
from loka_compile.trial.race import _won
from tests.report.conftest import EVIL
from tests.report.made_up import large

VIEW = resources.files("loka_compile.report") / "view"


class Parsed(HTMLParser):
    """Elements, what they contain, and what they point to."""

    VOID = ("meta", "link")

    def __init__(self, page):
        super().__init__()
        self.elements, self.open, self.contents, self.links = [], [], {}, []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.links += [value for name, value in attributes if name in ("src", "href", "action", "data")]
        if tag not in self.VOID:
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag):
        assert self.elements[self.open[-1]][0] == tag, f"</{tag}> ends {self.elements[self.open[-1]]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open:
            self.contents[self.open[-1]] = self.contents.get(self.open[-1], "") + data

    def inside(self, **attributes):
        return [
            self.contents.get(place, "")
            for place, (_, own) in enumerate(self.elements)
            if all(own.get(name) == value for name, value in attributes.items())
        ]


@pytest.fixture(scope="module")
def page(report):
    return html(report)


def test_it_is_one_whole_file_that_points_nowhere(page):
    parsed = Parsed(page)
    assert parsed.open == []
    assert parsed.links == ["data:,"]
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page.split('id="data">')[0])
    [policy] = [own["content"] for tag, own in parsed.elements if "http-equiv" in own]
    assert "default-src 'none'" in policy
    assert len([tag for tag, _ in parsed.elements if tag == "script"]) == len(SCRIPTS) + 1
    assert len([tag for tag, _ in parsed.elements if tag == "style"]) == len(STYLES)


def test_the_data_is_there_once_and_whole(page, report):
    [data] = Parsed(page).inside(id="data")
    assert json.loads(data) == json.loads(json.dumps(report))
    assert page.count("aten.addmm") == data.count("aten.addmm")


@pytest.mark.parametrize("name", ["</script><script>alert(1)</script>", "<!--<script>", EVIL, "\u2028 & \" ' ` ${x}"])
def test_a_name_stays_a_text(report, name):
    made = html({**report, "title": name, "strings": [*report["strings"], name]})
    parsed = Parsed(made)
    assert len([tag for tag, _ in parsed.elements if tag == "script"]) == len(SCRIPTS) + 1
    [data] = parsed.inside(id="data")
    assert json.loads(data)["strings"][-1] == json.loads(data)["title"] == name


def test_the_name_of_the_evil_module_is_in_no_markup(page):
    assert EVIL not in page and "<script>alert" not in page
    assert "\\u003cscript\\u003ealert(1)\\u0026amp;" in page


def test_no_text_of_the_data_can_end_its_element():
    assert not set("<>&") & set(embedded({"a": "</script>&amp;<!--"}))


def test_scripts_make_elements_and_parse_none():
    for name in SCRIPTS:
        code = (VIEW / name).read_text()
        for bad in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "fetch(",
            "XMLHttpRequest",
        ):
            assert bad not in code, f"{name} has {bad}"


def test_every_file_of_the_view_is_in_the_page_and_short():
    there = {path.name for path in Path(str(VIEW)).iterdir()}
    assert there == {*SCRIPTS, *STYLES, "page.html"}
    for name in there:
        assert len((VIEW / name).read_text().splitlines()) < 300, name


def test_no_text_is_under_11_pixels():
    sizes = {
        float(size)
        for name in STYLES
        for size in re.findall(r"font(?:-size)?:[^;{}]*?([\d.]+)px", (VIEW / name).read_text())
    }
    assert min(sizes) >= 11
    assert not any("font-size" in (VIEW / name).read_text() for name in SCRIPTS)


@pytest.mark.parametrize("at_least", [True, False])
def test_the_words_of_a_race_are_those_the_verdict_looks_for(at_least):
    looked_for = re.search(r"raced\[0\]\.match\(/(.*?)/\)", (VIEW / "verdict.js").read_text())[1]
    raced = _won(Plan("cpu", {}), [1.4], 0, at_least, "measured here").raced
    assert re.match(looked_for, raced)[2] == "1.40x"


def node():
    """Playwright brings one."""
    import playwright

    bundled = Path(playwright.__file__).parent / "driver" / "node"
    return str(bundled) if bundled.exists() else shutil.which("node")


def test_scripts_are_javascript(tmp_path):
    program = node()
    assert program, "node is neither in the playwright package nor on the path"
    together = tmp_path / "all.js"
    together.write_text("\n".join((VIEW / name).read_text() for name in SCRIPTS))
    for path in (together, *(Path(str(VIEW)) / name for name in SCRIPTS)):
        done = subprocess.run([program, "--check", str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("nested", [True, False])
def test_2000_sites_and_20000_nodes_fit_into_10_megabytes(nested):
    assert len(html(large(nested=nested)).encode()) < 10e6
