"""A sample that is exchanged while it is read: all of the old one or all of the new one."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.audience.reach import counters as module
from examples.audience.reach.build import build, refresh
from examples.audience.reach.columns import Columns
from examples.audience.reach.counters import Local, read
from examples.audience.reach.estimator import Estimator, Question
from examples.audience.reach.query import Everybody, Range
from examples.audience.reach.schema import AudienceError
from examples.audience.reach.shard import Shard
from examples.audience.reach.store import load, read_model


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for day, rows in enumerate((1000, 8000)):
        columns = {"a": rng.integers(0, 3, rows), "b": rng.integers(0, 4, rows), "y": np.ones(rows)}
        pq.write_table(pa.table(columns), tmp_path / f"{day}.parquet")
    build([tmp_path / "0.parquet"], Columns(("a", "b"), (), ("y",)), tmp_path / "s", 200)
    return tmp_path


def test_a_shard_of_another_sample_is_not_read(folder):
    """Everybody was 11,000, half of one sample and half of the other, of which all had answered."""
    yesterday = load(folder / "s")
    refresh(folder / "s", [folder / "1.parquet"])
    with pytest.raises(AudienceError, match="not what the manifest says"):
        Shard.read(folder / "s", yesterday, "shard-000.parquet")
    shards, lost = read(folder / "s", yesterday, yesterday.shards)
    assert not shards and list(lost) == list(yesterday.shards)
    assert load(folder / "s").identity != yesterday.identity


@pytest.mark.parametrize("after", ["manifest", "model"])
def test_a_refresh_while_it_is_read(folder, monkeypatch, after):
    """It comes after the manifest was read, or after the model was; the reading itself is what it always is."""
    turns = []

    def model(path, manifest):
        turns.append(manifest.population)
        found = None if len(turns) > 1 or after == "manifest" else read_model(path, manifest)
        if len(turns) == 1:
            refresh(folder / "s", [folder / "1.parquet"])
        return found or read_model(path, manifest)

    monkeypatch.setattr(module, "read_model", model)
    estimator = Estimator(Local(folder / "s"))
    assert turns == [1000, 8000] and not estimator.counters.lost
    found = estimator.batch([Question(Everybody()), Question(Range("b", 0, 4)), Question(Everybody(), "total", "y")])
    assert [each.value for each in found] == pytest.approx([8000] * 3) and found[0].answered == 1


def test_a_shard_that_is_broken_is_read_once(folder):
    (folder / "s" / "shard-001.parquet").write_bytes(b"no")
    counters = Local(folder / "s")
    assert list(counters.lost) == ["shard-001.parquet"] and len(counters.shards) == 3
