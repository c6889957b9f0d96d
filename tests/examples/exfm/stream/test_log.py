"""The log is read in the same chunks wherever one begins, and damage costs what is damaged."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.exfm.errors import ExfmError
from examples.exfm.stream.drift import Drift
from examples.exfm.stream.events import concat
from examples.exfm.stream.log import HOUR, Log, hour_of, name_of, write, write_hour
from tests.examples.exfm.stream.test_events import same


@pytest.fixture(scope="module")
def drift():
    return Drift(hours=8, rate=60)


@pytest.fixture
def folder(drift, tmp_path):
    write(tmp_path, drift.schema, drift.events(), group_rows=50)
    return tmp_path


def test_what_is_read_is_what_was_written(drift, folder):
    written = concat(list(drift.events()))
    log = Log(folder, chunk_rows=100)
    chunks = list(log.chunks())
    assert same(concat([events for events, _ in chunks]), written)
    assert len(chunks) > 5 and max(len(events) for events, _ in chunks) < 150
    assert not log.counters.counts and log.schema == drift.schema


def test_every_position_goes_on_as_if_nothing_had_happened(folder):
    log = Log(folder, chunk_rows=100, span=2)
    chunks = list(log.chunks())
    for at in range(len(chunks)):
        rest = list(log.chunks(chunks[at][1]))
        assert [position for _, position in rest] == [position for _, position in chunks[at + 1 :]]
        assert all(same(a, b) for (a, _), (b, _) in zip(rest, chunks[at + 1 :], strict=True))


def test_a_quiet_stream_still_moves(folder):
    spans = [
        (int(events.logged[-1]) // HOUR) - int(events.logged[0]) // HOUR
        for events, _ in Log(folder, chunk_rows=10**6, span=3).chunks()
    ]
    assert len(spans) > 4 and max(spans) < 3


def test_a_damaged_row_group_is_left_out_alone_and_named(folder):
    log = Log(folder)
    whole = concat([events for events, _ in log.chunks()])
    path = folder / name_of(log.hours[1])
    with pq.ParquetFile(path) as file:
        assert file.num_row_groups > 1
        lost = file.metadata.row_group(0).num_rows
        start = file.metadata.row_group(0).column(1).data_page_offset
    raw = bytearray(path.read_bytes())
    raw[start + 40 : start + 60] = bytes(20)
    path.write_bytes(raw)
    again = Log(folder)
    rest = concat([events for events, _ in again.chunks()])
    assert len(rest) == len(whole) - lost
    assert again.counters.counts == {"corrupt_group": 1} and path.name in again.counters.named[0]


def test_a_damaged_file_is_left_out_and_named(folder):
    log = Log(folder)
    hours = log.hours
    (folder / name_of(hours[2])).write_bytes(b"PAR1 no")
    (folder / name_of(hours[3])).write_bytes(b"")
    rest = concat([events for events, _ in log.chunks()])
    assert not {hours[2], hours[3]} & set((rest.logged // HOUR).tolist()) and hours[4] in set(rest.logged // HOUR)
    assert log.counters["corrupt_file"] == 2


def test_a_file_is_whole_or_absent_and_holds_one_hour(drift, folder, tmp_path):
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    whole = concat(list(drift.events()))
    with pytest.raises(ExfmError, match="write one hour"):
        write_hour(tmp_path, whole)
    with pytest.raises(ExfmError, match=r"examples have .* ids, in fields and in the bag; the log's schema says"):
        write(tmp_path / "other", replace(drift.schema, most=drift.schema.most + 1), [whole])
    with pytest.raises(ExfmError, match="not in the order"):
        write(tmp_path / "other", drift.schema, [whole.take(np.arange(len(whole))[::-1])])
    assert hour_of(folder / name_of(123_456)) == 123_456
    with pytest.raises(ExfmError, match="no hour of a log"):
        hour_of(tmp_path / "notes.parquet")
    with pytest.raises(ExfmError, match="holds no log"):
        Log(tmp_path / "none")


def test_events_of_another_hour_are_left_out_and_do_not_move_the_clock(folder):
    log = Log(folder)
    hour = log.hours[2]
    path = folder / name_of(hour)
    table = pq.read_table(path)
    logged = table["logged"].to_numpy().copy()
    logged[3] += 365 * 24 * HOUR
    pq.write_table(table.set_column(table.column_names.index("logged"), "logged", pa.array(logged)), path)
    found = concat([events for events, _ in log.chunks()])
    assert log.counters.counts == {"wrong_hour": 1} and found.logged.max() < (log.hours[-1] + 1) * HOUR
    path.rename(folder / name_of(log.hours[-1] + 5))  # a whole hour under another name
    rest = Log(folder)
    assert not set(concat([events for events, _ in rest.chunks()]).logged // HOUR) & {hour, rest.hours[-1]}
    assert rest.counters["wrong_hour"] == len(table)


def test_an_hour_without_events_is_no_chunk(folder):
    log = Log(folder)
    path = folder / name_of(log.hours[1])
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    assert all(len(events) for events, _ in log.chunks()) and not log.counters.counts


def test_any_damage_of_a_footer_costs_the_file_alone(folder):
    log = Log(folder)
    path = folder / name_of(log.hours[1])
    whole = path.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for place in range(footer, len(whole), 131):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        assert {*log.hours} - {log.hours[1]} <= {
            int(each) for events, _ in Log(folder).chunks() for each in events.logged // HOUR
        }
