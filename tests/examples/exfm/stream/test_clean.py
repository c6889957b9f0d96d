"""Each fault is put right or left out, counted and named, and nothing else is touched."""

from dataclasses import replace

import numpy as np
import pytest

from examples.exfm.counters import Counters
from examples.exfm.stream.clean import clean
from examples.exfm.stream.drift import Drift
from examples.exfm.stream.events import IMPRESSION, LABEL, concat
from tests.examples.exfm.stream.test_events import same

DRIFT = Drift(hours=3, rate=100)
HOUR = 3600


@pytest.fixture
def events():
    return concat(list(DRIFT.events())[:3])


def cleaned(events, now=0):
    counters = Counters()
    return clean(events, DRIFT.schema, counters, now, HOUR), counters


def changed(events, name, rows, value):
    column = getattr(events, name).copy()
    column[rows] = value
    return replace(events, **{name: column})


def test_what_is_right_stays(events):
    found, counters = cleaned(events)
    assert same(found, events) and not counters.counts
    assert len(cleaned(events.take(slice(0, 0)))[0]) == 0


def test_a_clock_ahead_is_the_logs(events):
    row = 5
    found, counters = cleaned(changed(events, "time", row, events.logged[row] + 10**6))
    assert found.time[row] == events.logged[row] and counters.counts == {"clock_ahead": 1}
    assert f"example {events.id[row]}" in counters.named[0]
    behind, counters = cleaned(changed(events, "time", row, 5))
    assert behind.time[row] == 5 and not counters.counts  # whether that is too late is not for this to say


def test_a_log_that_goes_back_stands_still(events):
    found, counters = cleaned(changed(events, "logged", 10, events.logged[9] - 50))
    assert (np.diff(found.logged) >= 0).all() and counters.counts == {"log_disorder": 1}
    later, counters = cleaned(events, now=int(events.logged[-1]))
    assert (later.logged == events.logged[-1]).all() and counters["log_disorder"] == (
        events.logged < events.logged[-1]
    ).sum()


@pytest.mark.parametrize("value", [np.nan, -0.1, 1.5, np.inf])
def test_a_label_that_is_none_is_left_out(events, value):
    row = int(np.flatnonzero(events.kind == LABEL)[0])
    found, counters = cleaned(changed(events, "label", row, value))
    assert len(found) == len(events) - 1 and counters.counts == {"bad_label": 1}


@pytest.mark.parametrize(
    ("column", "value", "name"), [("kind", 9, "unknown_kind"), ("vertical", 3, "unknown_vertical")]
)
def test_what_nobody_knows_is_left_out(events, column, value, name):
    row = int(np.flatnonzero(events.kind == IMPRESSION)[2])
    found, counters = cleaned(changed(events, column, row, value))
    assert len(found) == len(events) - 1 and counters.counts == {name: 1}


@pytest.mark.parametrize(("column", "value"), [("ids", -1), ("ids", 10**6), ("bag", 99)])
def test_an_id_of_no_row_is_unknown(events, column, value):
    found, counters = cleaned(changed(events, column, (4, 0), value))
    assert getattr(found, column)[4, 0] == 0 and counters.counts == {"unknown_id": 1} and len(found) == len(events)
