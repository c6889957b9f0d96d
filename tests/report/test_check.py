"""What is no report is found, and said where: held against jsonschema on reports that are damaged everywhere."""

from __future__ import annotations

import copy
import json
from importlib import resources

import pytest

from loka_compile.report import document
from loka_compile.report.check import check
from loka_compile.report.compare import compared
from loka_compile.report.errors import ReportError
from tests.report.made_up import large
from tests.report.plans import plan_with

READ = {"$ref", "oneOf", "const", "enum", "type", "minimum", "required", "properties", "additionalProperties"}
READ |= {"items", "prefixItems", "minItems", "maxItems"}
WORDS = {"$schema", "$defs", "title", "description"}
WRONG = (None, True, -7, 0.5, "x", [[]], {})


@pytest.fixture(scope="module")
def small():
    return json.loads(json.dumps(large(2, 20)))


def places(value, at=()):
    """Of everything in it, of lists only the first and the last."""
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else sorted({0, len(value) - 1} & set(range(len(value))))
        for key in keys:
            yield (*at, key)
            yield from places(value[key], (*at, key))


def changed(body, at, to):
    body = copy.deepcopy(body)
    inside = body
    for key in at[:-1]:
        inside = inside[key]
    inside[at[-1]] = to
    return body


def said(body):
    try:
        check(body, "it")
    except ReportError as error:
        return str(error)
    return ""


def keywords(schema):
    for key, value in schema.items():
        yield key
        inside = value.values() if key in ("properties", "$defs") else [value]
        for each in inside:
            for one in each if isinstance(each, list) else [each]:
                if isinstance(one, dict):
                    yield from keywords(one)


def test_every_word_of_the_schema_is_read():
    schema = json.loads((resources.files("loka_compile.report") / "schema.json").read_text())
    assert set(keywords(schema)) <= READ | WORDS


def test_whole_reports_pass(small, report, profile, preview_json):
    plan = document.of_plan(plan_with(), "plan")
    for body in (small, report, plan, document.of_profile(profile, "p"), compared(plan, small)):
        assert said(json.loads(json.dumps(body))) == said(body) == ""


def test_it_refuses_what_the_schema_refuses(small, valid):
    tried = [(at, WRONG[i % len(WRONG)]) for i, at in enumerate(places(small))]
    refused = 0
    for at, to in tried:
        body = changed(small, at, to)
        if valid(body):
            refused += 1
            assert "damaged" in said(body), (at, to)
    assert 0.5 * len(tried) < refused < len(tried) and len(tried) > 200


@pytest.mark.parametrize(
    "at, to, words",
    [
        (("sites", 1, "outcome"), "lost", "sites/1/outcome: expected one of lowered, "),
        (("sites", 0, "reason"), 10**6, "sites/0/reason has text 1000000 of"),
        (("sites", 0, "mere"), float("nan"), "sites/0/mere: expected number or string or null, got nan"),
        (("graphs", 0, "snapshots", 1, "target", 3), 10**6, "snapshots/1/target/3 has text 1000000 of"),
        (("graphs", 0, "snapshots", 1, "inputs", 3), [20], "graphs/0/after: an input that is none of its 20 nodes"),
        (("graphs", 0, "snapshots", 1, "kernels", 3), [-99], "graphs/0/after: a kernel that is none of"),
        (("graphs", 0, "snapshots", 0, "bytes"), [1], "graphs/0/before: 20 nodes, and 1 values of 'bytes'"),
        (("graphs", 0, "snapshots"), [], "graphs/0/snapshots: expected 1 values, got 0"),
        (("verdict",), {}, "verdict has no 'target'"),
        (("x",), 1, "x is not known"),
    ],
)
def test_it_says_where(small, at, to, words):
    assert words in said(changed(small, at, to))


def test_a_comparison_is_checked_through_and_through():
    plan = document.of_plan(plan_with(), "plan")
    both = json.loads(json.dumps(compared(plan, plan)))
    assert "has no 'b'" in said({key: value for key, value in both.items() if key != "b"})
    assert "b/sites/0/outcome" in said(changed(both, ("b", "sites", 0, "outcome"), "lost"))
    assert "at sites [7, 0] of [2, 2]" in said(changed(both, ("changes", 0, 1), 7))
    assert "names: expected 2 values, got 1" in said({**both, "names": ["a"]})
