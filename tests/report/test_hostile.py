"""Names and numbers that nobody would choose, in a browser: the page says what they are, and nothing breaks."""

from __future__ import annotations

import json
import re

import pytest

from loka_compile.report import document
from loka_compile.report.compare import compared
from tests.report.browser import click, rows
from tests.report.made_up import large
from tests.report.plans import plan_with

pytestmark = pytest.mark.browser
LONG = "n" * 5000


def small():
    return json.loads(json.dumps(large(4, 40)))


def in_modules(*paths):
    """A small report whose operations are in these modules, by turns."""
    made = small()
    for snapshot in made["graphs"][0]["snapshots"]:
        places = [made["strings"].index(p) if p in made["strings"] else made["strings"].append(p) for p in paths]
        places = [made["strings"].index(path) for path in paths]
        snapshot["module"] = [places[i % len(places)] for i in range(len(snapshot["names"]))]
    return made


def names(page, panel=2, selector=".unit"):
    return page.eval_on_selector_all(f".panel:nth-child({panel}) {selector}", "units => units.map(u => u.dataset.name)")


def every_view(page):
    for tab in page.query_selector_all("[role=tab]"):
        tab.click()
        for at in range(2):
            page.evaluate("at => document.querySelectorAll('section:not([hidden]) .row')[at]?.click()", at)
        yield tab.get_attribute("id").removeprefix("tab-")


def test_modules_of_one_child_within_one_another(opened):
    page = opened(in_modules("net.encoder.layers.0", "net.encoder.layers.1"))
    page.click("#tab-graph")
    assert {"net.encoder.layers", "net.encoder.layers.0", "net.encoder.layers.1"} <= set(names(page))
    click(page, ".panel:nth-child(2) .unit[data-name='net.encoder.layers']")
    assert "net.encoder.layers.0" not in names(page) and "net.encoder.layers" in names(page, selector=".unit.selected")


def test_a_module_that_is_called_as_what_every_object_has(opened):
    page = opened(in_modules("constructor", "__proto__", "toString"))
    page.click("#tab-graph")
    words = page.inner_text(".panel:nth-child(2) .canvas")
    assert "toString" in words and "native code" not in words


def test_the_focus_stays_on_a_module_that_is_called_model(opened):
    page = opened(in_modules("model", "other"))
    page.click("#tab-graph")
    page.focus(".panel:nth-child(2) .unit[data-name=model]:not([data-unit=g0])")
    unit = page.evaluate("document.activeElement.dataset.unit")
    for _ in range(2):
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.dataset.unit") == unit != "g0"


def test_what_has_no_glyph_is_shown_and_turns_nothing_around(opened):
    page = opened(document.of_plan(plan_with("a\u202eb\u200b\nc\x1b#0:output", "it\u2067 is"), "\u202eplan"))
    assert page.inner_text("#title") == "⟨202e⟩plan"
    page.click("#tab-sites")
    assert rows(page)[0] == "a⟨202e⟩b⟨200b⟩⏎c⟨001b⟩#0"
    assert "it⟨2067⟩ is" in page.inner_text("#view-sites .row:first-child")
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b]", page.inner_text("body"))


def test_names_of_5000_characters_do_not_widen_the_page(opened):
    made = small()
    made["strings"] = [f"{LONG}{i}" if i % 3 else text for i, text in enumerate(made["strings"])]
    for site in made["sites"]:
        site |= {"key": LONG + site["key"], "shape": LONG, "runs_as": LONG, "source": LONG}
    made["verdict"] |= {"worst_site": LONG, "warnings": [LONG], "raced": [LONG], "notes": [LONG]}
    page = opened({**made, "title": LONG})
    for view in every_view(page):
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view


def test_numbers_without_bound(opened):
    made = small()
    for place, site in enumerate(made["sites"]):
        bad = ("inf", "nan")[place // 2]
        site |= dict.fromkeys(("mere", "sqnr_db", "median_rel", "time_before_us", "time_after_us", "speedup"), bad)
        site["candidates"] = [[row[0], bad, bad, bad, bad, *row[5:]] for row in site["candidates"]]
    made["verdict"] |= {"worst_mere": "inf", "budget": {"mere": "inf", "sqnr_db": "-inf", "speedup": 1.05}}
    page = opened(made)
    for view in every_view(page):
        words = page.inner_text(f"#view-{view}")
        assert "Infinity" not in words and "NaN µs → " not in words, view
    page.click("#tab-graph")
    for overlay in ("error", "time"):
        page.select_option("#view-graph .toolbar label:has-text('colour by') select", overlay)
    assert page.query_selector(".unit rect[fill*=NaN]") is None


def session(**more):
    figures = {"calls": 0, "measured": 0, "overhead": 0.0, "budget": 0.01, "max_mere": 0.2}
    return {"graph": "graph_0", "status": "online: measuring", **figures, "events": [], "seen": {}, **more}


def test_a_session_before_any_plan_and_one_of_200000_calls(opened):
    seen = {
        "long": [[i, 0.1] for i in range(200_000)],
        "none": [],
        "wild": [[1, "inf"], [2, "nan"]],
        "zero": [[3, 0.0]],
    }
    lifted = session(calls=200_000, max_mere="inf", budget="inf", seen=seen, events=[[1, "planned", "x"]])
    page = opened({**small(), "online": [session(), lifted]})
    page.click("#tab-online")
    words = page.inner_text("#view-online")
    assert "online: measuring" in words and "Infinity" not in words
    assert page.query_selector("#view-online polyline") and "wild" in words and "none" not in words
    assert not re.search("NaN|Infinity", page.inner_html("#view-online svg"))


def test_a_profile_has_no_stray_zero(opened, profile):
    page = opened(document.of_profile(profile, "profile"))
    page.click("#tab-sites")
    page.click("#view-sites .row[aria-expanded]")
    alone = (
        "[...document.querySelectorAll('.details *')].filter(e => [...e.childNodes].some(n => n.data === '0')).length"
    )
    assert page.evaluate(alone) == 0


def test_a_graph_that_one_side_has_alone_is_reached(opened):
    one, two = small(), small()
    two["graphs"].append({**two["graphs"][0], "name": "graph_1"})
    page = opened(compared({**one, "title": "one"}, {**two, "title": "two"}))
    page.click("#tab-graphs")
    page.select_option("#view-graphs .toolbar label:has-text('graph') select", "1")
    page.click("#view-graphs .toolbar label:has-text('A and B') input")
    assert page.input_value("#view-graphs .toolbar select >> nth=0") == "1"


def test_a_name_that_forward_and_backward_share_leads_to_its_own_part(opened):
    made = small()
    made["strings"] += ["forward", "backward"]
    after = made["graphs"][0]["snapshots"][1]
    after["phase"] = [len(made["strings"]) - (2 if i < 20 else 1) for i in range(40)]
    after["names"][5] = after["names"][25] = "twice"
    after["target"][25] = after["target"][5]
    page = opened(compared({**made, "title": "one"}, {**made, "title": "two"}))
    page.click("#tab-graphs")
    for _ in range(3):
        page.click(".panel:nth-child(1) button:has-text('Unfold')")
    click(page, ".panel:nth-child(1) .unit[data-unit='5']")
    linked = page.eval_on_selector_all(".panel:nth-child(2) .unit.linked", "all => all.map(u => u.dataset.unit)")
    assert linked == ["5"]


def test_the_graph_is_searched_as_all_else_and_says_what_it_has_not(opened):
    made = small()
    made["graphs"][0]["snapshots"][0]["names"][7] = "taken_away"
    page = opened(made)
    page.click("#tab-graph")
    for words, panel in (("BLOCKS.0", 2), ("Taken_Away", 1)):
        page.fill("#view-graph input[type=search]", words)
        page.press("#view-graph input[type=search]", "Enter")
        assert names(page, panel, ".unit.selected"), words
    page.fill("#view-graph input[type=search]", "nowhere")
    page.press("#view-graph input[type=search]", "Enter")
    assert "Nothing here is called nowhere." in page.inner_text("body")


def test_all_views_are_printed_in_ink(opened):
    page = opened(small(), color_scheme="dark")
    page.click("#tab-passes")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    for view in ("verdict", "sites", "graph", "passes"):
        assert page.is_visible(f"#view-{view}") and page.inner_text(f"#view-{view}"), view
    assert len(rows(page)) == 4 and page.query_selector_all("#view-graph .unit")
    tops = page.eval_on_selector_all("#view-sites .row", "rows => rows.map(r => r.getBoundingClientRect().top)")
    assert tops == sorted(set(tops))
    light = "getComputedStyle(document.documentElement).getPropertyValue('--good').trim()"
    assert page.evaluate(light) == "#006b4e"
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.is_visible("#view-passes") and not page.is_visible("#view-sites")


def test_a_plan_is_printed_with_what_was_unfolded(opened, tmp_path):
    page = opened(document.of_plan(plan_with(), "plan"))
    page.click("#tab-sites")
    page.click("#view-sites .row[aria-expanded]")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 700, "height": 900})
    boxes = page.eval_on_selector_all(
        "#view-sites .place", "all => all.map(e => [e.getBoundingClientRect().top, e.getBoundingClientRect().bottom])"
    )
    assert len(boxes) == 2 and boxes[0][1] <= boxes[1][0] + 1
