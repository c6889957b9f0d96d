"""Which columns are accepted, as what, and refusals that name file, column, what was expected and what came."""

import datetime
import decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.audience.reach import store
from examples.audience.reach.build import build, refresh
from examples.audience.reach.columns import MEASURE, Columns
from examples.audience.reach.counters import Local
from examples.audience.reach.estimator import Estimator, Question
from examples.audience.reach.query import Everybody, In, Range
from examples.audience.reach.schema import AudienceError

ROWS = 600
A = pa.array(np.arange(ROWS) % 3)
TEXT = pa.array(["x", "y", None] * 200)


def built(folder, tables, columns, n=ROWS):
    """The whole population as its own sample, so that answers are exact whoever gives them."""
    paths = []
    for i, table in enumerate(tables):
        paths.append(folder / f"{i}.parquet")
        pq.write_table(pa.table(table), paths[-1])
    build(paths, columns, folder / "s", n * len(tables), shards=2)
    return Estimator(Local(folder / "s"), 60)


@pytest.mark.parametrize(
    "column",
    [
        TEXT,
        TEXT.cast(pa.large_string()),
        TEXT.cast(pa.string_view()),
        TEXT.dictionary_encode(),
        TEXT.cast(pa.large_string()).dictionary_encode(),
    ],
    ids=lambda column: str(column.type)[:24],
)
def test_text_is_text_however_it_is_kept(column, tmp_path):
    estimator = built(tmp_path, [{"t": column}, {"t": TEXT.slice(0, 300)}], Columns(("t",)))
    assert {value: found.value for value, found in estimator.group_by(Question(Everybody()), "t").items()} == {
        "x": 300,
        "y": 300,
        None: 300,
    }


def test_whole_numbers_may_be_narrow_in_one_file_and_wide_in_another(tmp_path):
    wide = [-1, 2000, 2**40]
    files = [
        {"a": pa.array([1, 2] * 300, pa.int8())},
        {"a": pa.array(wide * 200, pa.int64())},
        {"a": pa.array([1, 200, None] * 200, pa.uint8()).dictionary_encode()},
        {"a": pa.array([2**64 - 1] * ROWS, pa.uint64())},
        {"a": pa.nulls(500)},
    ]
    found = built(tmp_path, files, Columns(("a",))).group_by(Question(Everybody()), "a")
    expected = {-1: 200, 1: 500, 2: 300, 200: 200, 2000: 200, 2**40: 200, 2**64 - 1: 600, None: 700}
    assert {value: each.value for value, each in found.items()} == expected
    pq.write_table(pa.table({"a": pa.array([1, 3] * 300, pa.int16())}), tmp_path / "today.parquet")
    refresh(tmp_path / "s", [tmp_path / "today.parquet"])  # narrower than what is listed
    estimator = Estimator(Local(tmp_path / "s"), 60)
    assert [estimator.reach(Question(In("a", (value,)))).value for value in (1, 3, 2000)] == [300, 300, 0]


@pytest.mark.parametrize(
    ("column", "mean"),
    [
        (pa.array([1, 3] * 300).cast(pa.decimal128(25, 2)), 2.0),
        (pa.array([True, False] * 300), 0.5),
        (pa.array([2**53 + 1, 2**53 + 3] * 300), 2.0**53 + 2),
        (pa.array([1.5, None] * 300, pa.float16()), 1.5),
        (pa.array([1, 3] * 300, pa.int8()), 2.0),
    ],
    ids=str,
)
def test_a_measure_may_be_any_number(column, mean, tmp_path):
    estimator = built(tmp_path, [{"a": A, "m": column}], Columns(("a",), (), ("m",)))
    assert estimator.reach(Question(Everybody(), "mean", "m")).value == pytest.approx(mean, rel=1e-12)


def test_numbers_are_compared_as_they_are_written(tmp_path):
    prices = pa.array([decimal.Decimal("0.10"), decimal.Decimal("0.30"), None] * 200, pa.decimal128(9, 2))
    estimator = built(tmp_path, [{"a": A, "p": prices}], Columns(("a",), ("p",)))
    assert estimator.reach(Question(Range("p", 0.1, 0.3))).value == 200
    assert estimator.reach(Question(Range("p", 0.1))).value == 400


DAY = pa.array([datetime.date(2026, 11, 29)] * ROWS)
NOW = pa.array([datetime.datetime(2026, 11, 29)] * ROWS)
REFUSED = [
    ("number", DAY, "holds date32.*expected numbers; write it as whole numbers, such as days"),
    ("number", NOW, "holds timestamp.*expected numbers"),
    ("measure", NOW, "holds timestamp.*expected numbers"),
    ("number", TEXT, "holds string; expected numbers; name it a feature"),
    ("measure", TEXT, "holds string; expected numbers; write it as numbers"),
    ("number", pa.array([2**53 + 1] * ROWS), r"holds 9007199254740993; expected at most 2\^53"),
    ("number", pa.array([10**16] * ROWS).cast(pa.decimal128(25, 2)), "holds 1.*expected at most .*larger units"),
    (
        "feature",
        pa.array([0.5] * ROWS),
        "holds double; expected text, whole numbers or true and false; name it a number",
    ),
    ("feature", DAY, "holds date32.*write it as text"),
    ("feature", pa.array([[1]] * ROWS), "holds list.*expected text"),
    ("user", pa.array([0.5] * ROWS), "holds double; expected text or whole numbers"),
    ("user", pa.array(["u", None] * 300), "is missing in 300 rows; leave these rows out"),
    ("user", pa.array(["u", None] * 300).dictionary_encode(), "is missing in 300 rows"),
]


@pytest.mark.parametrize(
    ("use", "column", "message"), REFUSED, ids=[f"{use} {col.type}"[:32] for use, col, _ in REFUSED]
)
@pytest.mark.parametrize("again", [False, True], ids=["build", "refresh"])
def test_a_column_that_is_unfit_is_named_with_its_file(use, column, message, again, tmp_path):
    good = {"feature": A, "number": A, "measure": A, "user": pa.array(["u", "v"] * 300)}[use]
    columns = Columns(
        ("a", "c") if use == "feature" else ("a",),
        ("c",) if use == "number" else (),
        ("c",) if use == "measure" else (),
        "c" if use == "user" else None,
    )
    if again:
        built(tmp_path, [{"a": A, "c": good}], columns, 100)
    path = tmp_path / "bad.parquet"
    pq.write_table(pa.table({"a": A, "c": column}), path)
    with pytest.raises(AudienceError, match=rf"bad\.parquet: {use} 'c' {message}"):
        refresh(tmp_path / "s", [path]) if again else build([path], columns, tmp_path / "s", 100)


@pytest.mark.parametrize(
    ("use", "other"), [("feature", ["1", "2"]), ("feature", [True, False]), ("user", ["1", "2"])], ids=str
)
def test_one_kind_in_one_file_and_another_in_another_is_an_error(use, other, tmp_path):
    columns = Columns(("a",)) if use == "feature" else Columns((), user="a")
    pq.write_table(pa.table({"a": pa.array([1, 2] * 300)}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"a": other * 300}), tmp_path / "1.parquet")
    both = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    expected = (
        r"1\.parquet: 'a' holds (text|true and false); expected whole numbers, as in .*0\.parquet; write it alike"
    )
    with pytest.raises(AudienceError, match=expected):
        build(both, columns, tmp_path / "s", 100)
    build(both[:1], columns, tmp_path / "s", 100)
    if use == "feature":  # users of another kind are other users, all of them
        with pytest.raises(AudienceError, match=r"1\.parquet: 'a' holds .*as in the sample"):
            refresh(tmp_path / "s", both[1:])


@pytest.mark.parametrize("use", ["features", "numbers"])
@pytest.mark.parametrize("user", [None, "who"])
def test_a_column_may_have_any_name(use, user, tmp_path):
    names = ("weight", "group", "key", "stratum", "group size", "group rows", "user", "measure y", "measure group")
    own = {name: pa.array(np.arange(ROWS) // (i + 1) % 4) for i, name in enumerate(names)}
    table = {**own, "y": pa.array(np.ones(ROWS)), "who": pa.array(np.arange(ROWS) // 2)}
    named = {"features": (), "numbers": (), "measures": ("y",), "user": user, use: names}
    estimator = built(tmp_path, [table], Columns(**named))
    for name in names:
        truth = np.bincount(own[name], minlength=4)
        queries = [In(name, (i,)) if use == "features" else Range(name, i, i + 1) for i in range(4)]
        for of, measure in (("count", None), ("total", "y")):
            found = estimator.batch([Question(query, of, measure) for query in queries])
            assert [each.value for each in found] == pytest.approx(truth)


def test_a_column_is_a_feature_or_a_number_once_and_a_measure_besides(tmp_path):
    for wrong, message in (
        (lambda: Columns(("a", "age"), ("age",)), "'age' is named twice; a column is one feature or number"),
        (lambda: Columns(("a", "a")), "'a' is named twice"),
        (lambda: Columns(("a",), (), ("y", "y")), "'y' is named twice; a column is one measure"),
        (lambda: Columns((":weight",)), "':weight' begins with ':'"),
        (lambda: Columns(()), "no column is named"),
    ):
        with pytest.raises(AudienceError, match=message):
            wrong()
    estimator = built(tmp_path, [{"a": A}], Columns(("a",), (), ("a",), "a"))
    assert estimator.reach(Question(In("a", (2,)), "total", "a")).value == pytest.approx(400)


@pytest.mark.parametrize("columns", [Columns((), (), ("a",)), Columns((), user="a"), Columns((), ("a",))], ids=str)
def test_a_sample_without_features(columns, tmp_path):
    estimator = built(tmp_path, [{"a": A}], columns, 50)
    assert estimator.reach(Question(Everybody())).value == pytest.approx(ROWS, rel=1e-9) or columns.user
    if columns.measures:
        found = estimator.reach(Question(Everybody(), "mean", "a"))
        assert found.low <= 1 <= found.high
        table = store.read_shard(tmp_path / "s", estimator.manifest, "shard-000.parquet")
        assert MEASURE + "a" in table.column_names


def test_a_feature_that_is_missing_everywhere_may_be_anything_tomorrow(tmp_path):
    estimator = built(tmp_path, [{"a": A, "z": pa.nulls(ROWS)}], Columns(("a", "z")), 100)
    assert estimator.reach(Question(In("z", (None,)))).value == ROWS
    pq.write_table(pa.table({"a": A, "z": TEXT}), tmp_path / "today.parquet")
    assert refresh(tmp_path / "s", [tmp_path / "today.parquet"]).schema.feature("z").values == ("x", "y", None)


def test_a_name_that_stands_twice_in_a_file_is_an_error(tmp_path):
    pq.write_table(pa.Table.from_arrays([A, A], names=["a", "a"]), tmp_path / "x.parquet")
    with pytest.raises(AudienceError, match=r"x\.parquet has several columns 'a'"):
        build([tmp_path / "x.parquet"], Columns(("a",)), tmp_path / "s", 10)
