"""Many values at once match as few do."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.audience.reach.build import build
from examples.audience.reach.columns import Columns
from examples.audience.reach.counters import Local
from examples.audience.reach.estimator import Estimator, Question
from examples.audience.reach.query import And, In, Not
from examples.audience.reach.shard import FEW


def test_many_values_match_as_few_do(tmp_path):
    rng = np.random.default_rng(0)
    v, w = rng.integers(0, 300, 4000), rng.integers(0, 3, 4000)
    known = pa.array([None if each == 7 else int(each) for each in v])
    pq.write_table(pa.table({"v": known, "w": w}), tmp_path / "p.parquet")
    whole, half = (8000, 2000)
    for rows in (whole, half):
        build([tmp_path / "p.parquet"], Columns(("v", "w")), tmp_path / f"s{rows}", rows)
        estimator = Estimator(Local(tmp_path / f"s{rows}"))
        wanted = (None, *range(100, 250))
        assert len(wanted) > FEW
        inside = ((v >= 100) & (v < 250)) | (v == 7)
        for query, truth in ((In("v", wanted), inside), (Not(In("v", wanted)), ~inside)):
            found, alone = estimator.reach(Question(query)), estimator.alone(Question(query))
            assert found.value == pytest.approx(truth.sum()) and found.rows == alone.rows
            both = And((query, In("w", (1,))))
            assert estimator.reach(Question(both)).rows == estimator.alone(Question(both)).rows
