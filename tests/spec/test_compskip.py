"""Schedules of CompSkip: read back as they were written, which layers they choose, and what is wrong with a bad one."""

from __future__ import annotations

import json

import pytest

import loka_compile as loka
from loka_compile.spec.compskip import CompSkip, chosen

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def test_a_schedule_reads_back():
    schedule = CompSkip("blocks.*", {"even": ["a", "b.c"], 3: ["d"]}, {"1::2": ["e"]})
    assert CompSkip.of(str(schedule)) == CompSkip.of(schedule.as_dict()) == CompSkip.of(schedule) == schedule
    assert json.loads(str(schedule))["skip"] == {"even": ["a", "b.c"], "3": ["d"]}
    assert loka.Options(compskip=schedule.as_dict()).compskip == schedule and hash(schedule)


@pytest.mark.parametrize(
    ("which", "numbers"),
    [
        ("all", [0, 1, 2, 3, 4, 5]),
        ("even", [0, 2, 4]),
        ("odd", [1, 3, 5]),
        ("3", [3]),
        ("0,4", [0, 4]),
        ("2:", [2, 3, 4, 5]),
        ("1::3", [1, 4]),
        (":2,5", [0, 1, 5]),
    ],
)
def test_which_layers(which, numbers):
    assert [number for number in range(6) if chosen(which, number)] == numbers


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("alternating", "nearest: 'alternate'"),
        (2, "expected 'alternate', a schedule or None; got 2"),
        ("{", "expected a schedule as JSON"),
        ({"layers": "blocks.*"}, "skips nothing and reuses nothing"),
        ({"skip": {"even": ["a"]}}, 'needs "layers"'),
        ({"layers": "blocks", "skip": {"even": ["a"]}}, "with \\* for the layer's number"),
        ({"layers": "b.*", "skip": {"evn": ["a"]}}, "got 'evn' .nearest: 'even'"),
        ({"layers": "b.*", "skip": {"::0": ["a"]}}, "got '::0'"),
        ({"layers": "b.*", "skip": {"even": "a"}}, r"write \['a'\]"),
        ({"layers": "b.*", "skip": {"even": []}}, "expected a list of paths"),
        ({"layers": "b.*", "skips": {"even": ["a"]}}, "has no 'skips' .nearest: 'skip'"),
        ({"layers": "b.*", "skip": {"even": ["a"]}, "reuse": {"even": ["a"]}}, "both skipped and reused"),
    ],
)
def test_a_bad_schedule(value, message):
    with pytest.raises(loka.OptionsError, match=message):
        loka.Options(compskip=value)
