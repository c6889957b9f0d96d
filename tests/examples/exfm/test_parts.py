import pyarrow as pa
import pytest

from examples.exfm.counters import Counters
from examples.exfm.parts import Parts


def table(value):
    return pa.table({"x": [value] * 10})


def values(parts, start=0):
    return [(number, each["x"][0].as_py()) for number, each in parts.tables(start)]


def test_readers_see_what_is_committed(tmp_path):
    parts = Parts(tmp_path / "rows")
    parts.commit(0)
    parts.prepare(0, table(0))
    assert values(parts) == []
    parts.commit(1)
    parts.prepare(1, table(1))
    parts.prepare(2, table(2))
    assert values(parts) == [(0, 0)]
    parts.commit(3)
    assert values(parts) == [(0, 0), (1, 1), (2, 2)] and values(parts, 2) == [(2, 2)]


def test_what_a_lost_run_prepared_goes_and_what_is_in_place_stays(tmp_path):
    parts = Parts(tmp_path)
    for number in range(3):
        parts.prepare(number, table(number))
    parts.commit(2)  # the checkpoint knows two
    assert values(parts) == [(0, 0), (1, 1)] and not list(tmp_path.glob(".part*"))
    parts.prepare(1, table(99))  # a run from an older checkpoint comes by again
    parts.prepare(2, table(2))
    parts.commit(3)
    assert values(parts) == [(0, 0), (1, 1), (2, 2)]


def test_damage_is_counted_and_the_rest_is_read(tmp_path):
    parts = Parts(tmp_path)
    for number in range(3):
        parts.prepare(number, table(number))
    parts.commit(3)
    (tmp_path / "part-000001.parquet").write_bytes(b"no")
    counters = Counters()
    assert [number for number, _ in parts.tables(0, counters)] == [0, 2]
    assert counters.counts == {"corrupt_part": 1} and "part-000001.parquet" in counters.named[0]
    with pytest.raises(pa.ArrowInvalid):
        list(parts.tables())
