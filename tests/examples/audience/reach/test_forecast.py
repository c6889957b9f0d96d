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
from examples.audience.reach.query import Everybody, In, Or
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
    with pytest.raises(AudienceError, match="at least 14 days; the sample has 10"):
        forecast(few, Question(Everybody()), "day")
    with pytest.raises(AudienceError, match="not written as 2026-11-29"):
        forecast(few, Question(Everybody()), "device")
    with pytest.raises(AudienceError, match="1 to 366"):
        forecast(few, Question(Everybody()), "day", 0)
    with pytest.raises(AudienceError, match="wider audience"):
        forecast(estimator_of(tmp_path, 20, 1, n=25), Question(Or((In("device", ("web",)),))), "day")
