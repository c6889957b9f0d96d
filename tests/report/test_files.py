"""A report of a file that holds a plan, a profile, a preview or a report; anything else is an error that says so."""

from __future__ import annotations

import json

import pytest

import loka_compile as loka
from loka_compile.report import files, previews
from loka_compile.report.errors import ReportError
from loka_compile.report.page import as_json
from tests.report.plans import plan_with


def written(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_what_was_saved_is_read_again(tmp_path, case, profile, report, preview_json, valid):
    case.plan.save(tmp_path / "plan.json")
    profile.save(tmp_path / "profile.safetensors")
    written(tmp_path, "report.json", as_json(report))
    written(tmp_path, "preview.json", json.dumps([preview_json]))
    kinds = {
        "plan.json": "plan",
        "profile.safetensors": "profile",
        "report.json": "compilation",
        "preview.json": "preview",
    }
    for name, kind in kinds.items():
        made = files.read(tmp_path / name)
        assert made["kind"] == kind and valid(made) == [], name
    assert files.read(tmp_path / "report.json") == report


def test_a_preview_keeps_its_sides_kernels_and_errors(preview_json):
    part = previews.part_of(preview_json, "x")
    sides = {side["name"]: side for side in part["sides"]}
    assert [len(side["kernels"]) for side in part["sides"]] == [3, 2, 0] and sides["eager"]["error"] == "!"
    assert [kernel["what"] for kernel in sides["inductor"]["kernels"]] == ["product16", "other", "product16"]
    assert [kernel["what"] for kernel in sides["loka"]["kernels"]] == ["product8"] * 2
    us = preview_json["sides"][0]["totals"]["modelled_us"]
    assert sum(kernel["us"] for kernel in sides["inductor"]["kernels"]) == pytest.approx(us, rel=1e-4)


def broken(case, profile, report, preview_json):
    plan, whole = json.loads(case.plan.to_json()), json.loads(as_json(report))
    first = next(iter(plan["decisions"].values()))
    first["chosen"] = "int3/nobody"
    whole["sites"][0]["reason"] = 10**6
    kernels = json.loads(json.dumps(preview_json))
    del kernels["sides"][0]["kernels"][0]["modelled_us"]
    return {
        "cut short": (case.plan.to_json()[:100], "is not JSON"),
        "another choice": (json.dumps(plan), "int3"),
        "an old plan": (json.dumps({**plan, "version": 1}), "plan version 1"),
        "some JSON": ('{"a": 1}', "expected a plan or a preview"),
        "a list of numbers": ("[1]", "is no preview: expected an object"),
        "nothing in it": ("[]", "is empty"),
        "an empty file": ("", "is empty"),
        "a picture": (b"\x89PNG\r\n\x1a\n" + b"\0" * 64, "is no safetensors file"),
        "a cut profile": (profile.to_bytes()[:2000], "truncated"),
        "another report": (json.dumps({**whole, "version": 99}), "report version 99"),
        "a text that is not there": (json.dumps(whole), "has text 1000000 of"),
        "a report without sites": (json.dumps({k: v for k, v in whole.items() if k != "sites"}), "has no 'sites'"),
        "a kernel without time": (json.dumps(kernels), "has no 'modelled_us'"),
        "deep": ("[" * 100_000, "is not JSON"),
    }


def test_what_is_damaged_is_an_error_that_says_why(tmp_path, case, profile, report, preview_json):
    for name, (data, words) in broken(case, profile, report, preview_json).items():
        with pytest.raises(ReportError) as caught:
            files.read(written(tmp_path, "file", data))
        assert words in str(caught.value), f"{name}: {caught.value}"


NO_NUMBERS = (float("nan"), float("inf"), -1, 10**400, "x", [1])


@pytest.mark.parametrize("bad", NO_NUMBERS, ids=lambda bad: str(bad)[:9])
@pytest.mark.parametrize("key", ["modelled_us", "us", "flops", "bytes", "resources"])
def test_a_kernel_without_sense(tmp_path, preview_json, valid, key, bad):
    body = json.loads(json.dumps(preview_json))
    body["sides"][0]["kernels"][0][key] = bad
    try:
        made = files.read(written(tmp_path, "preview.json", json.dumps(body)))
    except ReportError as error:
        assert key in str(error) and "damaged" in str(error)
    else:  # these may be missing
        assert key == "resources" or (key == "us" and isinstance(bad, str | list))
        assert valid(made) == [] and as_json(made)


@pytest.mark.parametrize("key, bad", [("memory", "x"), ("memory", -1), ("capacity", float("inf")), ("where", None)])
def test_a_preview_without_sense(tmp_path, preview_json, key, bad):
    with pytest.raises(ReportError, match=rf"preview.json is damaged: previews/0/{key}: expected"):
        files.read(written(tmp_path, "preview.json", json.dumps({**preview_json, key: bad})))


def test_half_of_a_pair_and_a_mark_of_order_are_read_and_written(tmp_path):
    plan = plan_with(reason="\ud83d half").to_json()
    made = files.read(written(tmp_path, "plan.json", b"\xef\xbb\xbf" + plan.encode()))
    again = files.read(written(tmp_path, "report.json", as_json(made)))
    assert again == made and "\ud83d half" in made["strings"]
    out = loka.report({**made, "title": "\ud83d"}, tmp_path / "out.html").read_bytes()
    assert b"\\ud83d half" in out and "–".encode() in out
    assert loka.report(made, tmp_path / "OUT.JSON").read_bytes().startswith(b"{")


def test_the_data_of_a_report_is_checked_too(tmp_path):
    made = files.read(written(tmp_path, "plan.json", plan_with().to_json()))
    with pytest.raises(ReportError, match="sites: expected array, got None"):
        loka.report({**made, "sites": None}, tmp_path / "out.html")


def test_what_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ReportError, match=r"cannot read .*absent"):
        files.read(tmp_path / "absent.json")


def test_the_api_takes_them_all(tmp_path, case, profile, report):
    case.plan.save(tmp_path / "plan.json")
    case.compiled(case.x)  # compiled here: tests of other files forget what was
    for what in (case.compiled, case.plan, profile, tmp_path / "plan.json", report):
        path = loka.report(what, tmp_path / "out.html")
        assert path.read_text().startswith("<!doctype html>")
    assert json.loads(loka.report(case.plan, tmp_path / "out.json").read_text())["format"] == "loka-report"
