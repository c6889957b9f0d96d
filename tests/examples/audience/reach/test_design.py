"""Trials of features of very many values: few values each, counted as they are."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.audience.reach.build import build
from examples.audience.reach.columns import MAX_VALUES, Columns
from examples.audience.reach.counters import Local
from examples.audience.reach.design import FEW, MOST_VALUES, counted, drawn_trial
from examples.audience.reach.estimator import Estimator, Question
from examples.audience.reach.query import In
from examples.audience.reach.schema import Feature, Schema


@pytest.mark.parametrize("values", [7, FEW, 5000])
def test_trials_are_counted_as_they_are(values):
    rng = np.random.default_rng(0)
    codes = {"v": rng.integers(-1, values, 3001).astype(np.int32), "z": rng.integers(0, 3, 3001).astype(np.int32)}
    schema = Schema((Feature("v", tuple(range(values))), Feature("z", (0, 1, 2))))
    trials = [drawn_trial(codes, schema, rng) for _ in range(200)] + [(("v", ()), ("z", (1,))), ()]
    truth = [
        np.all([np.isin(codes[name], own) for name, own in trial] + [codes["z"] >= 0], axis=0).sum() for trial in trials
    ]
    assert counted(trials, codes).tolist() == truth
    assert max(len(own) for trial in trials for _, own in trial) <= MOST_VALUES + 1


def test_as_many_values_as_a_feature_may_have_are_built(tmp_path):
    rng = np.random.default_rng(0)
    value = rng.permutation(np.arange(MAX_VALUES))
    table = {"v": value, "z": np.where(rng.random(MAX_VALUES) < 0.7, value % 3, 0)}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    made = build([tmp_path / "x.parquet"], Columns(("v", "z")), tmp_path / "s", 1000)
    size = (tmp_path / "s" / "manifest.json").stat().st_size
    assert size < 2e6 and len(json.loads((tmp_path / "s" / "manifest.json").read_text())["design"]["trials"]) > 1000
    assert len(made.schema.feature("v").values) == MAX_VALUES
    found = Estimator(Local(tmp_path / "s"), 60).reach(Question(In("v", (5, 6, 70_000 % MAX_VALUES))))
    assert found.low == found.value == found.high == 3
