"""The joiner: exactly once, when the window closes, by what is known then, from any checkpoint on."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.lattice.zipper.joiner import Joiner
from examples.lattice.zipper.log import Log, log_of
from examples.lattice.zipper.windows import Windows
from tests.examples.lattice.zipper.logs import clocks, logs

WINDOWS = Windows((3.0, 10.0, 25.0))


def released(joiner: Joiner, stops) -> list[tuple[float, int, int, float]]:
    """(ready, row, head, label) of all that comes."""
    found = []
    for now in stops:
        part = joiner.advance(now)
        assert bool((part.ready <= now).all()) and not bool(part.later.any())
        found += zip(part.ready.tolist(), part.rows.tolist(), part.heads.tolist(), part.labels.tolist(), strict=True)
    return found


@given(logs(), clocks)
def test_each_impression_is_released_once_with_its_own_windows_label(log, stops):
    found = released(Joiner(log, WINDOWS), [*stops, 100.0])
    delays, heads = log.delays().tolist(), WINDOWS.assign(log.keys, log.times).tolist()
    expected = [
        (time + WINDOWS.seconds[head], row, head, float(delays[row] <= WINDOWS.seconds[head]))
        for row, (time, head) in enumerate(zip(log.times.tolist(), heads, strict=True))
    ]
    assert sorted(found) == sorted(expected)
    ends = [0, *stops, 100.0]
    for before, now in pairwise(ends):  # within a call in the order of time
        part = [ready for ready, *_ in found if before < ready <= now]
        assert part == sorted(part)


@given(logs(), clocks, st.data())
def test_no_label_is_seen_before_it_is_there(log, stops, data):
    """Whatever the future is made to be, what is released until now stays."""
    now = stops[-1]
    seen = released(Joiner(log, WINDOWS), stops)
    assert released(Joiner(log.until(now), WINDOWS), stops) == seen  # the future has not happened
    delays = log.delays()
    later = (log.times + delays > now) | delays.isinf()
    others = torch.tensor(data.draw(st.lists(st.integers(0, 30), min_size=len(log), max_size=len(log)))).double()
    moved = (now + 1 - log.times).clamp(min=0) + others
    changed = log_of(log.times, log.keys, delays.where(~later, moved))  # or it is another one
    assert released(Joiner(changed, WINDOWS), stops) == seen


def test_the_test_of_the_future_can_fail():
    """A log that is given its conversions too early releases other labels: the comparison above tells them apart."""
    log = log_of(torch.zeros(30).double(), torch.arange(60).view(30, 2), torch.full((30,), 20.0).double())
    early = Log(log.times, log.keys, log.converted - 18, log.of)
    assert released(Joiner(log, WINDOWS), [12.0]) != released(Joiner(early, WINDOWS), [12.0])


@given(logs(), clocks, st.integers(0, 12))
def test_a_joiner_goes_on_from_its_state(log, stops, stop):
    stops = [*stops, 100.0]
    whole = released(Joiner(log, WINDOWS), stops)
    first = Joiner(log, WINDOWS)
    before = released(first, stops[:stop])
    second = Joiner(log, WINDOWS)
    second.resume({name: value.clone() for name, value in first.state().items()})
    assert before + released(second, stops[stop:]) == whole
