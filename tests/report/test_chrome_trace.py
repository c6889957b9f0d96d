"""Chrome trace events, as Perfetto reads them."""

from __future__ import annotations

import json

import pytest

from loka_compile.report import document, files
from loka_compile.report.chrome_trace import as_json, events
from loka_compile.report.compare import compared
from loka_compile.report.errors import ReportError
from loka_compile.spec.plan import Plan
from tests.report.plans import plan_with


def slices(found):
    return [event for event in found if event["ph"] == "X"]


def named(found, kind):
    return [event["args"]["name"] for event in found if event["ph"] == "M" and event["name"] == kind]


def test_a_preview_is_a_process_and_each_side_a_thread(preview_json):
    found = events([files.of_previews([preview_json], "x")])
    assert named(found, "process_name") == ["net on h100, modelled"]
    assert named(found, "thread_name") == ["inductor", "loka", "eager"]
    inductor = [event for event in slices(found) if event["tid"] == 1]
    assert [event["name"] for event in inductor] == ["mm", "triton_poi_relu", "mm"]
    ends = [event["ts"] + event["dur"] for event in inductor]
    assert [event["ts"] for event in inductor] == pytest.approx([0.0, *ends[:-1]])


def test_a_compilation_is_its_gemms_before_and_after(report):
    found = events([report])
    assert named(found, "thread_name") == ["as the model has them", "as chosen"]
    timed = [site for site in report["sites"] if site["time_before_us"] is not None and site["outcome"] != "absent"]
    before, after = ([e for e in slices(found) if e["tid"] == thread] for thread in (1, 2))
    assert sum(e["dur"] for e in before) == pytest.approx(report["verdict"]["gemm_before_us"])
    assert sum(e["dur"] for e in after) == pytest.approx(report["verdict"]["gemm_after_us"])
    assert [e["name"] for e in before] == [site["key"] for site in timed]


def test_every_event_has_what_the_format_asks(report, preview_json):
    body = json.loads(as_json([report, files.of_previews([preview_json], "x")]))
    assert {event["pid"] for event in body["traceEvents"]} == {1, 2}
    for event in body["traceEvents"]:
        wanted = {"M": {"name", "args"}, "X": {"name", "ts", "dur", "pid", "tid", "args"}}[event["ph"]]
        assert wanted <= set(event) and event.get("dur", 0) >= 0


def test_a_comparison_is_both_of_its_sides_and_whole_numbers_are_times():
    plan = document.of_plan(plan_with(), "plan")
    assert events([compared(plan, plan)]) == events([plan, plan]) != []
    whole = json.loads(as_json([plan]).replace(".0,", ",").replace(".0}", "}"))
    sites = [{**s, "time_before_us": int(s["time_before_us"])} for s in plan["sites"]]
    assert events([{**plan, "sites": sites}]) == whole["traceEvents"]


def test_nothing_timed_is_an_error():
    with pytest.raises(ReportError, match="no times in plan"):
        as_json([document.of_plan(Plan("cpu", {}), "plan")])
