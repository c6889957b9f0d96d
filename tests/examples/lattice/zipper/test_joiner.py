"""The joiner: exactly once, when the window closes, by what is known then, from any checkpoint on."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.lattice.data import DataError
from examples.lattice.zipper.joiner import Joiner
from examples.lattice.zipper.log import Log, log_of
from examples.lattice.zipper.windows import Windows
from tests.examples.lattice.zipper.logs import clocks, logs

WINDOWS = Windows((3.0, 10.0, 25.0))


def few(delays: list[float], keys: list[int]) -> Log:
    """Impressions at 0, 1 and 2 seconds, and one at 4 that converts at once."""
    seconds = torch.tensor([0.0, 1.0, 2.0, 4.0], dtype=torch.float64)
    numbers = torch.tensor([*keys, 9])
    return log_of(seconds, torch.stack([numbers, numbers], 1), torch.tensor([*delays, 0.0], dtype=torch.float64))


FEW = few([1.0, 9.0, 9.0], [0, 1, 2])


def released(joiner: Joiner, stops) -> list[tuple[float, int, int, float]]:
    """(ready, row, head, label) of all that comes, whose delay is known where it converted."""
    found = []
    for now in stops:
        part = joiner.advance(now)
        assert bool((part.ready <= now).all()) and not bool(part.later.any())
        known = joiner._log.delays()[part.rows]
        assert torch.equal(part.delays, known.where(part.labels > 0, float("inf")))
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


@given(logs(), clocks)
def test_a_joiner_goes_on_when_its_log_has_grown(log, stops):
    """A state of the log as it stood then, with the log as it is now."""
    now = stops[-1]
    first, second = Joiner(log.until(now), WINDOWS), Joiner(log, WINDOWS)
    before = released(first, stops)
    second.resume(first.state())
    assert sorted(before + released(second, [100.0])) == sorted(released(Joiner(log, WINDOWS), [100.0]))


@pytest.mark.parametrize(
    ("other", "error"),
    [
        (Windows((3.0, 10.0, 26.0)), "windows: 3.0, 10.0, 25.0 s .* in the checkpoint, 3.0, 10.0, 26.0 s .* here"),
        (Windows(WINDOWS.seconds, (1.0, 1.0, 4.0)), r"in shares 1.0, 1.0, 1.0 .* in shares 1.0, 1.0, 4.0"),
        (Windows(WINDOWS.seconds, (), 7), "with seed 0 in the checkpoint, .* with seed 7 here"),
    ],
)
def test_a_state_of_other_windows_is_refused(other, error):
    joiner = Joiner(FEW, WINDOWS)
    joiner.advance(4.0)
    with pytest.raises(DataError, match=error):
        Joiner(FEW, other).resume(joiner.state())


@pytest.mark.parametrize(
    ("delays", "keys", "error"),
    [
        ([1.0, 9.0, 2.0], [0, 1, 2], "4 impressions and 2 conversions .* 4 impressions and 3 conversions"),
        ([1.0, 9.0, 9.0], [0, 1, 3], "4 impressions and 2 conversions .* 4 impressions and 2 conversions"),
        ([1.5, 9.0, 9.0], [0, 1, 2], "checksum"),
    ],
)
def test_a_state_of_another_log_is_refused(delays, keys, error):
    joiner = Joiner(FEW, WINDOWS)
    joiner.advance(4.0)
    with pytest.raises(DataError, match=f"of another run; log: .*{error}.*start with what it was made with"):
        Joiner(few(delays, keys), WINDOWS).resume(joiner.state())


def test_a_state_without_identity_is_refused():
    state = {name: value for name, value in Joiner(FEW, WINDOWS).state().items() if not name.startswith("of ")}
    with pytest.raises(DataError, match=r"windows: not written down in it .* log: not written down in it"):
        Joiner(FEW, WINDOWS).resume(state)


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
