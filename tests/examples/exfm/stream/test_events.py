"""Events go through Arrow and back, and what is no events is an error."""

import numpy as np
import pyarrow as pa
import pytest

from examples.exfm.errors import ExfmError
from examples.exfm.stream.drift import Drift
from examples.exfm.stream.events import IMPRESSION, LABEL, Events, Schema, concat, impressions, in_order, labels


def same(a, b):
    return all(
        np.array_equal(x, y, equal_nan=x.dtype.kind == "f")
        for x, y in zip(*(vars(e).values() for e in (a, b)), strict=True)
    )


def test_through_arrow_and_back():
    events = concat(list(Drift(hours=3, rate=20).events()))
    assert {IMPRESSION, LABEL} == set(events.kind.tolist())
    again = Events.from_table(events.to_table())
    assert same(again, events) and [x.dtype for x in vars(again).values()] == [x.dtype for x in vars(events).values()]
    assert len(Events.from_table(events.take(slice(0, 0)).to_table())) == 0


def test_what_is_no_events_is_an_error():
    table = next(iter(Drift(hours=1, rate=5).events())).to_table()
    with pytest.raises(ExfmError, match="no events"):
        Events.from_table(table.drop_columns(["logged"]))
    holes = table.set_column(table.column_names.index("id"), "id", pa.array([None] * len(table), pa.int64()))
    with pytest.raises(ExfmError, match="id has values that are missing"):
        Events.from_table(holes)
    width = table["ids"].type.list_size
    for name, column, words in (
        ("ids", pa.array([None, *range(1, len(table) * width)], pa.int32()), "ids has values that are missing"),
        ("ids", pa.array(np.full(len(table) * width, np.nan, np.float32)), "ids has float; expected int32"),
        ("ids", pa.array(np.full(len(table) * width, 1 << 40)), "ids: .*not in range"),
    ):
        lists = pa.FixedSizeListArray.from_arrays(column, width)
        with pytest.raises(ExfmError, match=words):
            Events.from_table(table.set_column(table.column_names.index(name), name, lists))
    for name, column, words in (
        ("logged", pa.array(np.zeros(len(table), "datetime64[ms]")), "logged has timestamp"),
        ("kind", pa.array(table["kind"].to_numpy().astype(int) + 256), "kind: .*not in range"),
        ("id", pa.array([str(each) for each in table["id"].to_pylist()]), "id has string; expected int64"),
    ):
        with pytest.raises(ExfmError, match=words):
            Events.from_table(table.set_column(table.column_names.index(name), name, column))


def test_order_is_that_of_the_log_and_of_one_second_that_given():
    first, second = list(Drift(hours=2, rate=50).events())[:2]
    mixed = in_order([second, first])
    assert (np.diff(mixed.logged) >= 0).all() and len(mixed) == len(first) + len(second)
    again = in_order([mixed, mixed])
    assert again.id[0] == again.id[1] == mixed.id[0] or again.logged[0] == again.logged[1]


def test_a_schema_says_what_is_wrong(tmp_path):
    schema = Drift().schema
    schema.save(tmp_path)
    assert Schema.load(tmp_path) == schema and schema.vertical("stories") == 1
    with pytest.raises(ExfmError, match="no vertical 'news'"):
        schema.vertical("news")
    with pytest.raises(ExfmError, match="1 to 63 verticals, not 0"):
        Schema(("a",), (1,), 1, 1, ())
    with pytest.raises(ExfmError, match="cardinalities"):
        Schema(("a",), (1, 2), 1, 1, ("x",))
    (tmp_path / "schema.json").write_text("{")
    with pytest.raises(ExfmError, match="make the log again"):
        Schema.load(tmp_path)
    with pytest.raises(ExfmError, match="holds no log"):
        Schema.load(tmp_path / "none")


def test_what_does_not_fit_a_column_is_an_error_not_another_number():
    one = {"id": np.array([1]), "time": np.array([1_700_000_000]), "vertical": np.array([0])}
    ids, bag = np.array([[3]]), np.array([[1, 0]])
    assert impressions([[3]], [[1, 0]], id=[1], time=[1_700_000_000.7], vertical=[0]).time.tolist() == [1_700_000_000]
    for changes, words in (
        ({"ids": ids << 40}, "ids goes from 3298534883328 .*expected -2147483648"),
        ({"time": one["time"] * 1000}, "time.*expected seconds since 1970"),
        ({"time": np.array([np.nan])}, "time has float64"),
        ({"vertical": np.array(["feed"])}, "vertical has <U4; expected whole numbers"),
        ({"vertical": np.array([200])}, "vertical goes from 200"),
        ({"id": np.array([0.5])}, "id has float64"),
    ):
        given = {**one, "ids": ids, "bag": bag, **changes}
        with pytest.raises(ExfmError, match=words):
            impressions(given.pop("ids"), given.pop("bag"), **given)
    with pytest.raises(ExfmError, match="seconds since 1970"):
        labels(Drift().schema, id=one["id"], time=one["time"] * 10**9, label=np.array([1.0]))
