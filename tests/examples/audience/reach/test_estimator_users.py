"""Answers about users with several rows each: overlaps, who also and who never, and a sample without a shard."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.audience.reach.build import build
from examples.audience.reach.columns import Columns
from examples.audience.reach.counters import Local
from examples.audience.reach.estimator import Estimator, Question
from examples.audience.reach.query import Everybody, In


@pytest.fixture(scope="module")
def impressions(tmp_path_factory):
    """Users with one to five rows each, on two days; a sample of all of them and one of a quarter."""
    folder = tmp_path_factory.mktemp("users")
    rng = np.random.default_rng(1)
    user = np.repeat(np.arange(1500), rng.integers(1, 6, 1500))
    day, click = rng.integers(0, 2, len(user)), (rng.random(len(user)) < 0.2).astype(float)
    pq.write_table(pa.table({"u": user, "day": day, "click": click}), folder / "p")
    for name, n in (("all", 2 * len(user)), ("some", len(user) // 4)):
        build([folder / "p"], Columns(("day",), (), ("click",), "u"), folder / name, n)
    return Estimator(Local(folder / "all")), Estimator(Local(folder / "some")), user, day


def test_an_overlap_of_users_is_of_users(impressions):
    """Nobody was in both days, as no row is on two."""
    whole, some, user, day = impressions
    first, second = set(user[day == 0]), set(user[day == 1])
    truth = len(first & second), len(first - second), len(second - first)
    found = whole.overlap(In("day", (0,)), In("day", (1,)), "users")
    assert [(each.value, each.low, each.high) for each in (found.both, found.first, found.second)] == [
        pytest.approx((each,) * 3) for each in truth
    ]
    assert found.jaccard == pytest.approx(len(first & second) / len(first | second))
    found = some.overlap(In("day", (0,)), In("day", (1,)), "users")
    assert all(
        each.low <= there <= each.high
        for each, there in zip((found.both, found.first, found.second), truth, strict=True)
    )
    assert found.both.value + found.first.value == pytest.approx(some.reach(Question(In("day", (0,)), "users")).value)
    by_row = whole.overlap(In("day", (0,)), In("day", (1,)))
    assert by_row.both.value == 0 and by_row.first.value == pytest.approx((day == 0).sum())


def test_users_who_also_and_who_never(impressions):
    whole, _, user, day = impressions
    first, second = In("day", (0,)), In("day", (1,))
    asked = [Question(first, "users", also=(second, first)), Question(first, "users", never=(second,))]
    both, alone = (each.value for each in whole.batch(asked))
    assert both == pytest.approx(len(set(user[day == 0]) & set(user[day == 1])))
    assert alone == pytest.approx(len(set(user[day == 0]) - set(user[day == 1])))


def test_rows_of_a_sample_of_users_without_a_shard(impressions):
    """Users are not shared out by their rows: the answer is of the share of users, and rows are known in all."""
    _, some, user, day = impressions
    counters = Local.__new__(Local)
    counters.manifest, counters.model, counters.lost = some.manifest, some.counters.model, {}
    counters.shards = dict(list(some.counters.shards.items())[1:])
    less = Estimator(counters)
    assert less.reach(Question(Everybody())).value == len(user)
    rows, users = less.batch([Question(In("day", (0,))), Question(In("day", (0,)), "users")])
    assert rows.low <= (day == 0).sum() <= rows.high and users.low <= len(set(user[day == 0])) <= users.high
    assert users.answered == pytest.approx(0.75, abs=0.01)
