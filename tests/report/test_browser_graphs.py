"""Graphs in a browser: modules fold, boxes are coloured, and a node is found before, after and by its site."""

from __future__ import annotations

import pytest

from loka_compile.report.compare import compared
from tests.report.browser import click

pytestmark = pytest.mark.browser


def test_modules_fold_and_unfold_in_both_graphs(opened, report):
    page = opened(report)
    page.keyboard.press("3")
    block = ".panel:nth-child({}) .unit[data-name='blocks.0']"
    assert page.get_attribute(block.format(1), "aria-expanded") == "true"
    inside = lambda: len(page.query_selector_all(".panel .unit.op"))  # noqa: E731
    many = inside()
    click(page, block.format(2))
    assert [page.get_attribute(block.format(i), "aria-expanded") for i in (1, 2)] == ["false"] * 2
    assert inside() < many
    click(page, block.format(2))
    assert inside() == many


def test_overlays_colour_the_boxes_and_say_what_in_words(opened, report):
    page = opened(report)
    page.keyboard.press("3")
    said = {"recipe": "int8_rowwise", "error": "MERE 0.02", "time": "%", "bytes": "kB", "pass": "lower"}
    for overlay, words in said.items():
        page.select_option("#view-graph .toolbar label:has-text('colour by') select", overlay)
        assert words in page.inner_text(".panel:nth-child(2) .canvas")
        assert page.query_selector(".panel:nth-child(2) .unit rect[fill]")
    page.select_option("#view-graph .toolbar label:has-text('colour by') select", "none")
    assert page.query_selector(".panel .unit > rect[fill]") is None


def test_a_node_selected_before_is_seen_after_and_back(opened, report):
    page = opened(report)
    page.keyboard.press("3")
    before = report["graphs"][0]["snapshots"][-2]
    addmm = next(
        n for n, t in zip(before["names"], before["target"], strict=True) if report["strings"][t] == "aten.addmm"
    )
    for _ in range(3):
        page.click(".panel:nth-child(1) button:has-text('Unfold')")
    click(page, f".panel:nth-child(1) .unit[data-name='{addmm}']")
    linked = page.eval_on_selector_all(".panel:nth-child(2) .unit.linked", "units => units.map(u => u.dataset.name)")
    assert "frozen_int_mm" in linked
    assert "blocks.0.up" in page.inner_text(".aside")
    click(page, ".panel:nth-child(2) .unit[data-name='frozen_int_mm']")
    back = page.eval_on_selector_all(".panel:nth-child(1) .unit.linked", "units => units.map(u => u.dataset.name)")
    assert addmm in back
    details = page.inner_text(".aside")
    assert (
        "the pass lower" in details
        and "self.up(self.norm(x)).relu()" in details
        and "loka.frozen_int_mm (library" in details
    )


def test_a_node_shows_its_generated_kernel(opened, report):
    page = opened(report)
    page.keyboard.press("3")
    page.fill("#view-graph input[type=search]", "relu")
    page.press("#view-graph input[type=search]", "Enter")
    assert 'extern "C"' in page.inner_text(".aside pre:has-text('extern')")


def test_from_a_site_to_its_node_and_back(opened, report):
    page = opened(report)
    page.keyboard.press("2")
    page.fill("#search", "blocks.1.down")
    page.click("#view-sites .row[aria-expanded]")
    page.click("text=Show it in the graph")
    assert page.is_visible("#view-graph") and page.query_selector(".unit.selected")
    page.click(".aside .link:has-text('blocks.1.down#0:output')")
    assert page.is_visible("#view-sites")


def test_two_compilations_are_compared_in_their_graphs(opened, report):
    page = opened(compared(report, {**report, "title": "another"}))
    page.click("#tab-graphs")
    page.fill("#view-graphs input[type=search]", "blocks.1.down")
    page.press("#view-graphs input[type=search]", "Enter")
    [name] = page.eval_on_selector_all(".panel:nth-child(2) .unit.selected", "units => units.map(u => u.dataset.name)")
    assert name in page.eval_on_selector_all(
        ".panel:nth-child(1) .unit.linked", "units => units.map(u => u.dataset.name)"
    )
    page.click(".aside .link:has-text('blocks.1.down#0:output')")
    assert page.is_visible("#view-compare") and "blocks.1.down" in page.inner_text(
        "#view-compare .row[aria-expanded=true]"
    )
