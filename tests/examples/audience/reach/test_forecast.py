"""Coming days: a pattern that is there is continued, and its intervals hold what comes."""

from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.audience.reach.build import build
from examples.audience.reach.columns import Columns
from examples.audience.reach.counters import Local
from examples.audience.reach.estimator import Estimator, Question
from examples.audience.reach.forecast import forecast
from examples.audience.reach.query import Everybody, In
from examples.audience.reach.schema import AudienceError

FIRST = date(2026, 6, 1)
WEEK = np.array([1.0, 1.1, 1.0, 0.9, 1.3, 2.0, 1.8])


def expected(day):
    return 400 * WEEK[day % 7] * 1.03 ** (day / 7)


def estimator_of(folder, days, seed=0, n=6000):
    rng = np.random.default_rng(seed)
    counts = [rng.poisson(expected(day)) for day in range(days)]
    when = np.repeat([str(FIRST + timedelta(days=day)) for day in range(days)], counts)
    device = rng.choice(["phone", "web"], len(when))
    pq.write_table(pa.table({"day": when, "device": device}), folder / f"{seed}.parquet")
    build([folder / f"{seed}.parquet"], Columns(("day", "device")), folder / f"s{seed}", n)
    return Estimator(Local(folder / f"s{seed}"))


def test_a_weekly_pattern_with_a_trend_is_continued(tmp_path):
    hits, days = [], 42
    for seed in range(6):
        found = forecast(estimator_of(tmp_path, days, seed), Question(Everybody()), "day", 14)
        assert list(found.coming) == [FIRST + timedelta(days=days + i) for i in range(14)]
        assert found.growth == pytest.approx(0.03, abs=0.02)
        for i, reach in enumerate(found.coming.values()):
            hits.append(reach.low <= expected(days + i) <= reach.high)
            assert reach.value == pytest.approx(expected(days + i), rel=0.2)
    assert np.mean(hits) > 0.9


def test_what_cannot_be_forecast_is_an_error(tmp_path):
    few = estimator_of(tmp_path, 10)
    with pytest.raises(AudienceError, match=r"at least 14 days, .* 'day' has 10"):
        forecast(few, Question(Everybody()), "day")
    with pytest.raises(AudienceError, match="not written as 2026-11-29"):
        forecast(few, Question(Everybody()), "device")
    with pytest.raises(AudienceError, match="1 to 366"):
        forecast(few, Question(Everybody()), "day", 0)
    some = tuple(str(FIRST + timedelta(days=day)) for day in range(5))
    with pytest.raises(AudienceError, match="on only 5 days, fewer than 14; ask for a wider audience"):
        forecast(estimator_of(tmp_path, 20, 1), Question(In("day", some)), "day")


def exact(folder, columns):
    """A sample of all rows."""
    pq.write_table(pa.table(columns), folder / "days.parquet")
    build([folder / "days.parquet"], Columns(tuple(columns)), folder / "days", 2 * len(columns["day"]))
    return Estimator(Local(folder / "days"))


def values(found):
    return {when.strftime("%a"): (round(each.value), round(each.low), round(each.high)) for when, each in found.items()}


def test_a_weekday_without_anybody_is_forecast_as_nobody(tmp_path):
    days = [FIRST + timedelta(days=i) for i in range(28)]  # the first is a Monday
    when = [day for day in days if day.weekday() != 6 for _ in range(20)]
    office = [day.weekday() < 5 for day in when]
    made = exact(tmp_path, {"day": list(map(str, when)), "office": office})
    closed = forecast(made, Question(Everybody()), "day", 7)
    assert closed.past[date(2026, 6, 7)].value == 0 and len(closed.past) == 27  # it ends on a Saturday
    open_, shut = (20, 20, 20), (0, 0, 0)
    week = dict.fromkeys(("Mon", "Tue", "Wed", "Thu", "Fri"), open_)
    assert values(closed.coming) == {"Sun": shut, **week, "Sat": open_}
    assert values(forecast(made, Question(In("office", (True,))), "day", 7).coming) == {
        "Sun": shut,
        **week,
        "Sat": shut,
    }


def test_a_weekday_with_some_empty_days_may_be_empty_again(tmp_path):
    days = [FIRST + timedelta(days=i) for i in range(28)]
    when = [str(day) for day in days if str(day) not in ("2026-06-10", "2026-06-17") for _ in range(20)]
    found = forecast(exact(tmp_path, {"day": when}), Question(Everybody()), "day", 7).coming
    assert values(found) | {"Wed": 0} == dict.fromkeys(("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"), (20,) * 3) | {
        "Wed": 0
    }
    assert values(found)["Wed"] == (10, 0, 20)  # every other Wednesday


def test_hours_of_a_day_add_up_and_rows_without_a_day_are_left_out(tmp_path):
    days = [str(FIRST + timedelta(days=i)) for i in range(21)]
    when = [f"{day} {hour}" for day in days for hour in ("08:00", "08:00", "20:00") for _ in range(10)]
    found = forecast(exact(tmp_path, {"day": [*when, *[None] * 50]}), Question(Everybody()), "day", 3)
    assert [each.value for each in found.past.values()] == [30] * 21
    assert [round(each.value) for each in found.coming.values()] == [30] * 3


def test_the_end_of_time_and_stray_days_are_errors(tmp_path):
    last = [str(date(9999, 12, 18) + timedelta(days=i)) for i in range(14)]
    with pytest.raises(AudienceError, match="end at 9999-12-31; there are no 1 days after it"):
        forecast(exact(tmp_path, {"day": last * 5}), Question(Everybody()), "day", 1)
    (tmp_path / "stray").mkdir()
    days = [str(FIRST + timedelta(days=i)) for i in range(14)]
    with pytest.raises(AudienceError, match=r"from 1970-01-01 .* leave stray days out"):
        forecast(exact(tmp_path / "stray", {"day": ["1970-01-01", *days * 5]}), Question(Everybody()), "day")
