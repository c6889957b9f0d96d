"""Yesterday's sample for today's files: the share that was asked for, no row twice, and values that are new today."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.audience.reach import learn, store
from examples.audience.reach.build import build, refresh
from examples.audience.reach.columns import USER, Columns
from examples.audience.reach.counters import Local
from examples.audience.reach.estimator import Estimator, Question
from examples.audience.reach.query import And, Everybody, In, Not, Range
from examples.audience.reach.schema import AudienceError
from tests.examples.audience.reach.population import COLUMNS, files, matches, table


def written(folder, name, columns):
    pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return folder / f"{name}.parquet"


def test_a_sample_of_users_does_not_grow_by_itself(tmp_path):
    rng = np.random.default_rng(1)
    rows = np.where(rng.random(3000) < 0.02, rng.integers(50, 200, 3000), rng.integers(1, 6, 3000))
    user = np.repeat(np.arange(3000), rows)
    path = written(tmp_path, "day", {"user": user, "g": rng.integers(0, 3, len(user))})
    first = build([path], Columns(("g",), user="user"), tmp_path / "s", len(user) // 20)
    users = set(pq.read_table(tmp_path / "s" / "shard-000.parquet")[USER].to_pylist())
    for _ in range(3):
        again = refresh(tmp_path / "s", [path])
        assert (again.rows, again.share) == (first.rows, first.share)
    assert set(pq.read_table(tmp_path / "s" / "shard-000.parquet")[USER].to_pylist()) == users


def test_the_share_stays_through_days_of_few_rows(tmp_path):
    many, few = written(tmp_path, "many", table(4000)), written(tmp_path, "few", table(30, seed=1))
    build([many], COLUMNS, tmp_path / "s", 200)
    assert refresh(tmp_path / "s", [few]).rows == 2  # 1.5 to the nearest even
    assert refresh(tmp_path / "s", [many]).rows == 200
    assert refresh(tmp_path / "s", [many], n=400).rows == 400
    assert refresh(tmp_path / "s", [many, few]).rows == 403


@pytest.mark.parametrize("n", [0, -5])
def test_no_rows_are_refused(n, tmp_path):
    path = written(tmp_path, "day", table(100))
    build([path], COLUMNS, tmp_path / "s", 50)
    for run in (lambda: refresh(tmp_path / "s", [path], n=n), lambda: build([path], COLUMNS, tmp_path / "s", n)):
        with pytest.raises(AudienceError, match=f"at least 1 row, not {n}"):
            run()
    assert store.load(tmp_path / "s").rows == 50


def test_what_would_count_twice_or_cannot_be_read_is_refused(tmp_path):
    paths = files(tmp_path / "population", days=2, rows=300)
    build(paths, COLUMNS, tmp_path / "s", 100)
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(paths[0].read_bytes())
    (tmp_path / "text.parquet").write_text("hello")
    (tmp_path / "cut.parquet").write_bytes(paths[1].read_bytes()[:-300])
    body = bytearray(paths[1].read_bytes())
    body[100:1500] = bytes(1400)
    (tmp_path / "holed.parquet").write_bytes(body)
    nobody = written(tmp_path, "nobody", table(10).slice(0, 0))
    for today, message in (
        ([paths[0], copy], r"two of the files, .*day-0\.parquet and .*copy\.parquet, hold the same bytes"),
        ([paths[0], paths[0]], "count twice"),
        ([tmp_path / "text.parquet"], r"text\.parquet is no Parquet file"),
        ([tmp_path / "cut.parquet"], r"cut\.parquet is no Parquet file"),
        ([tmp_path / "holed.parquet"], r"holed\.parquet is no Parquet file that can be read"),
        ([tmp_path / "none.parquet"], r"there is no file .*none\.parquet"),
        ([tmp_path], "there is no file"),
        ([nobody, paths[0]], r"nobody\.parquet has no rows"),
        ([], "name at least one"),
    ):
        for run in (refresh, lambda folder, own: build(own, COLUMNS, folder, 100)):
            with pytest.raises(AudienceError, match=message):
                run(tmp_path / "s", today)
    assert store.load(tmp_path / "s").population == 600


def test_values_that_are_new_today_are_values(tmp_path):
    rng = np.random.default_rng(0)

    def day(name, values):
        a = rng.choice(values, 1000)
        return written(tmp_path, name, {"a": a, "b": (a + rng.integers(0, 2, 1000)) % 4, "c": a.astype(str)})

    build([day("0", [0, 2]), day("1", [0, 2])], Columns(("a", "b", "c")), tmp_path / "s", 400)
    paths = [day("2", [0, 2]), day("3", [1, 2, 3, 4])]
    refresh(tmp_path / "s", paths)
    estimator = Estimator(Local(tmp_path / "s"), 60)
    assert estimator.schema.feature("a").values == (0, 1, 2, 3, 4)
    whole = pa.concat_tables([pq.read_table(path) for path in paths])
    columns = {name: whole[name].to_numpy() for name in ("a", "b", "c")}
    queries = [Range("a", 1, None), Not(Range("a", 1, None)), In("a", (3, 4)), Not(In("c", ("0",))), Everybody()]
    queries += [And((Range("a", 1, 4), In("b", (1,)))), And((Range("a", 1, None), Not(In("c", ("2", "4")))))]
    for query in queries:
        found, truth = estimator.reach(Question(query)), matches(query, columns).sum()
        assert found.low <= truth <= found.high, query
        assert found.low < found.high or found.value == truth
    for name in ("a", "b", "c"):
        found = estimator.group_by(Question(Everybody()), name)
        assert {str(value): each.value for value, each in found.items()} == pytest.approx(
            {str(value): (columns[name] == value).sum() for value in found}
        )
        assert sum(each.value for each in found.values()) == pytest.approx(2000)


def test_a_sample_of_users_learns_new_values_too(tmp_path):
    days = [written(tmp_path, f"{i}", {"u": np.arange(900) // 3, "a": np.arange(900) % (2 + i)}) for i in range(2)]
    build(days[:1], Columns(("a",), user="u"), tmp_path / "s", 900)
    refresh(tmp_path / "s", days[1:])
    found = Estimator(Local(tmp_path / "s"), 60).group_by(Question(Everybody()), "a")
    assert {value: each.value for value, each in found.items()} == pytest.approx({0: 300, 1: 300, 2: 300})


def test_a_refresh_says_what_a_build_would(tmp_path):
    """Values that come and go leave the trials, by their new codes, what they were."""
    one, other = written(tmp_path, "one", table(3000)), written(tmp_path, "two", table(3000, seed=1))
    build([one], COLUMNS, tmp_path / "s", 500)
    before = store.load(tmp_path / "s").design
    new = table(3000, seed=2)
    new = new.set_column(0, "country", pa.array(["AA", *new["country"].to_pylist()[1:]]))
    design = refresh(tmp_path / "s", [other, written(tmp_path, "new", new)]).design
    assert design.schema.feature("country").values == ("AA", *before.schema.feature("country").values)

    def values(design):
        return [
            [(name, {design.schema.feature(name).values[code] for code in codes}) for name, codes in trial]
            for trial in design.trials
        ]

    assert values(before) == values(design) and len(design.trials) > 50
    assert design.cover == before.cover and design.margins == before.margins


def test_values_that_are_gone_make_room_only_where_there_is_none(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    paths = [
        written(tmp_path, f"{i}", {"v": rng.permutation(np.arange(i * 30, i * 30 + 60).repeat(10)), "w": [1, 2] * 300})
        for i in range(3)
    ]
    monkeypatch.setattr(learn, "MAX_VALUES", 100)
    monkeypatch.setattr("examples.audience.reach.columns.MAX_VALUES", 100)
    build(paths[:1], Columns(("v", "w")), tmp_path / "s", 300)
    assert refresh(tmp_path / "s", paths[1:2]).schema.feature("v").values == tuple(range(90))
    made = refresh(tmp_path / "s", paths[1:])
    assert made.schema.feature("v").values == tuple(range(30, 120))
    estimator = Estimator(Local(tmp_path / "s"), 60)
    assert estimator.reach(Question(Range("v", 60, None))).value == pytest.approx(900)
    build(paths[:2], Columns(("v", "w")), tmp_path / "s", 300)
    with pytest.raises(AudienceError, match="feature 'v' has more than 100 values"):
        refresh(tmp_path / "s", paths)
    with pytest.raises(AudienceError, match="feature 'v' has more than 100 values"):
        build(paths, Columns(("v", "w")), tmp_path / "t", 300)


def test_tables_that_grow_out_of_bounds_are_not_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("examples.audience.reach.margins.MAX_TABLE", 30)
    rng = np.random.default_rng(0)
    columns = [{"a": rng.integers(0, size, 600), "b": rng.integers(0, 4, 600)} for size in (4, 12)]
    paths = [written(tmp_path, f"{i}", own) for i, own in enumerate(columns)]
    assert build(paths[:1], Columns(("a", "b")), tmp_path / "s", 100).design.margins == (("a", "b"),)
    assert refresh(tmp_path / "s", paths).design.margins == ()
    found = Estimator(Local(tmp_path / "s"), 60).reach(Question(In("a", (11,))))
    assert found.value == (columns[1]["a"] == 11).sum()
