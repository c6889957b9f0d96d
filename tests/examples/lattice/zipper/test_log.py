"""The log: in order, whole, and asked for nothing that has not happened."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from safetensors.torch import save_file

from examples.lattice.data import DataError
from examples.lattice.zipper.log import Log, Reader, log_of
from tests.examples.lattice.zipper.logs import clocks, logs

NAN, NEVER = float("nan"), float("inf")
KEYS = torch.zeros(2, 2, dtype=torch.int64)


def seconds(*values: float):
    return torch.tensor(values, dtype=torch.float64)


@given(logs(), clocks)
def test_a_reader_hands_out_every_event_once_and_none_before_its_time(log, stops):
    reader, rows, converted = Reader(log), 0, []
    for now in [*stops, 100.0]:
        new, of, times = reader.advance(now)
        assert new.start == rows and len(of) == len(times)
        rows = new.stop
        assert bool((log.times[:rows] <= now).all()) and bool((log.times[rows:] > now).all())
        assert bool((times <= now).all())
        converted += of.tolist()
    assert rows == len(log) and converted == log.of.tolist()


def test_a_reader_refuses_to_go_back_and_to_show_what_is_to_come():
    reader = Reader(log_of(seconds(1, 5), KEYS, seconds(2, 2)))
    reader.advance(3.0)
    assert reader.impressions(slice(0, 1))[1].tolist() == [1]
    with pytest.raises(ValueError, match=r"row 1 has not happened yet at 3\.0"):
        reader.impressions(slice(0, 2))
    with pytest.raises(ValueError, match=r"stands at 3\.0, it cannot go back to 2\.0"):
        reader.advance(2.0)


@given(logs())
def test_delays_come_back(log):
    again = log_of(log.times, log.keys, log.delays())
    assert torch.equal(again.converted, log.converted) and torch.equal(again.delays(), log.delays())


@given(logs(), clocks)
def test_the_identity_of_a_logs_past_is_that_of_the_log_as_it_stood(log, stops):
    for now in stops:
        assert log.identity(now) == log.until(now).identity(now)


def test_a_log_survives_a_file(tmp_path):
    log = log_of(seconds(1, 5), KEYS, seconds(float("inf"), 2))
    log.save(tmp_path / "log.safetensors")
    again = Log.load(tmp_path / "log.safetensors")
    assert again.times.tolist() == [1, 5] and again.converted.tolist() == [7] and again.of.tolist() == [1]
    at_once = Log(log.times, KEYS, log.times, torch.arange(2))  # one column in two places
    at_once.save(tmp_path / "log.safetensors")
    assert Log.load(tmp_path / "log.safetensors").delays().tolist() == [0, 0]
    with pytest.raises(DataError, match="is missing"):
        Log.load(tmp_path / "other")


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"times": seconds(5, 1)}, "in the order of time"),
        ({"times": seconds(1, NAN)}, "impression 1 was made at nan: expected seconds, which are finite"),
        ({"times": seconds(NAN, 5)}, "impression 0 was made at nan"),
        ({"times": seconds(1, NEVER)}, "impression 1 was made at inf"),
        ({"times": seconds(-NEVER, 5)}, "impression 0 was made at -inf"),
        ({"converted": seconds(NAN)}, "conversion 0 came at nan"),
        ({"converted": seconds(NEVER)}, "conversion 0 came at inf"),
        ({"of": torch.tensor([2])}, "not among the 2"),
        ({"of": torch.tensor([0, 1])}, "1 conversions 2 impressions"),
        ({"converted": seconds(0)}, "before it was made"),
        ({"converted": seconds(6, 7), "of": torch.tensor([0, 0])}, "converts twice"),
    ],
)
def test_a_log_that_cannot_be_is_refused(changed, error):
    columns = {"times": seconds(1, 5), "keys": KEYS, "converted": seconds(6), "of": torch.tensor([0])}
    with pytest.raises(DataError, match=error):
        Log(**{**columns, **changed})


@pytest.mark.parametrize("delay", [NAN, -NEVER, -1.0])
def test_a_delay_that_is_none_is_refused_and_not_taken_for_never(delay):
    assert len(log_of(seconds(1, 5), KEYS, seconds(0, NEVER)).of) == 1
    with pytest.raises(DataError, match=f"row 1 converts after {delay} seconds: expected 0 or more, or inf for never"):
        log_of(seconds(1, 5), KEYS, seconds(3, delay))


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"keys": torch.arange(2)}, r"keys of the log: .* of shape \(rows, 2\), got .* of shape \(2,\)"),
        ({"keys": torch.zeros(2, 3, dtype=torch.int64)}, r"keys of the log: .*\(2, 3\)"),
        ({"keys": KEYS.double()}, r"keys of the log: .*got torch\.float64"),
        ({"keys": KEYS.int()}, r"keys of the log: .*got torch\.int32"),
        ({"times": torch.tensor([1, 5])}, r"times of the log: .* of shape \(rows\), got torch\.int64"),
        ({"times": seconds(1, 5).float()}, r"times of the log: .*got torch\.float32"),
        ({"times": seconds(1, 5)[:, None]}, r"times of the log: .*\(2, 1\)"),
        ({"converted": torch.tensor([6])}, r"converted of the log: .*got torch\.int64"),
        ({"of": torch.tensor([0.0])}, r"of of the log: .*got torch\.float32"),
        ({"of": torch.tensor(0)}, r"of of the log: .*shape \(\)"),
    ],
)
def test_columns_of_another_type_or_shape_are_refused(tmp_path, changed, error):
    """One key a row, (N,), was mixed into all rows of a call: windows hung on how the clock moved."""
    columns = {"times": seconds(1, 5), "keys": KEYS, "converted": seconds(6), "of": torch.tensor([0]), **changed}
    with pytest.raises(DataError, match=error):
        Log(**columns)
    save_file(columns, tmp_path / "log.safetensors")
    with pytest.raises(DataError, match=error):
        Log.load(tmp_path / "log.safetensors")


def test_whole_seconds_become_a_logs_and_delays_are_one_an_impression():
    found = log_of(torch.tensor([1, 5]), KEYS, torch.tensor([2.0, NEVER]))
    assert found.times.dtype == found.converted.dtype == torch.float64 and found.converted.tolist() == [3]
    with pytest.raises(DataError, match=r"one delay an impression, got \(1,\) for \(2,\)"):
        log_of(seconds(1, 5), KEYS, seconds(3))
