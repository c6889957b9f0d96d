"""What the whole population says of a measure, added up over batches and files."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.audience.reach import store
from examples.audience.reach.build import build, refresh
from examples.audience.reach.columns import Columns
from examples.audience.reach.measures import Spread, joined, of_values
from examples.audience.reach.schema import AudienceError


def test_parts_add_up():
    values = np.random.default_rng(0).exponential(3, 1000)
    parts = [{"y": of_values(part)} for part in np.split(values, 4)] + [{"y": of_values(np.full(3, np.nan))}]
    found, whole = joined(parts)["y"], of_values(values)
    assert (found.low, found.high, found.rows) == (values.min(), values.max(), 1000)
    assert found.powers == pytest.approx(whole.powers)
    away = values - values.mean()
    assert found.away == pytest.approx(np.sqrt((away**4).sum() / (away**2).sum()), rel=1e-6)
    assert found.jump == pytest.approx(np.sqrt((values**4).sum() / (values**2).sum()))


def test_a_jump_is_never_larger_than_the_ends():
    assert of_values(np.r_[np.ones(3), np.zeros(97)]).jump == 1
    assert of_values(np.full(10, 7.0)).away == 0 and Spread().jump == 0
    far = of_values(1.7e9 + np.arange(100.0))  # the fourth powers have no digits left for this
    assert 0 < far.away <= 99
    assert of_values(np.array([1e200, 0.0])).jump == 1e200


def test_files_say_it_and_infinity_is_refused(tmp_path):
    """Totals were NaN [NaN, NaN]."""
    a = np.arange(200) % 3
    for name, y in (("good", a * 2.0), ("other", a * 5.0), ("bad", np.where(a == 1, np.inf, 1.0))):
        pq.write_table(pa.table({"a": a, "y": y}), tmp_path / f"{name}.parquet")
    columns = Columns(("a",), (), ("y",))
    found = build([tmp_path / "good.parquet"], columns, tmp_path / "s", 50).measures["y"]
    assert (found.low, found.high, found.rows) == (0, 4, 200) and store.load(tmp_path / "s").measures["y"] == found
    assert refresh(tmp_path / "s", [tmp_path / "other.parquet"]).measures["y"].high == 10
    with pytest.raises(AudienceError, match=r"bad.parquet: measure 'y' is infinite in 67 rows"):
        build([tmp_path / "bad.parquet"], columns, tmp_path / "t", 50)
    with pytest.raises(AudienceError, match="measure 'y' is infinite"):
        refresh(tmp_path / "s", [tmp_path / "bad.parquet"])
