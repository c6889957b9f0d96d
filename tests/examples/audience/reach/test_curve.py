"""Reach against performance: from the query to everybody, every step named, whatever the criteria's order."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.audience.reach.build import build
from examples.audience.reach.columns import Columns
from examples.audience.reach.counters import Local
from examples.audience.reach.curve import curve
from examples.audience.reach.estimator import Estimator
from examples.audience.reach.query import And, Everybody, In, Not, Or, Range
from examples.audience.reach.schema import AudienceError
from examples.audience.reach.text import from_text


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A sample of all rows; `twin` is `b`; nobody knows the clicks of those whose `a` is 2."""
    folder, rng = tmp_path_factory.mktemp("curve"), np.random.default_rng(0)
    a, b = rng.integers(0, 3, 3000), rng.integers(0, 2, 3000)
    age, spend = rng.integers(18, 40, 3000), rng.exponential(20, 3000)
    click = np.where(a == 2, np.nan, 0.1 * b + rng.random(3000))
    columns = {"a": a.astype(str), "b": b, "twin": b, "age": age, "spend": spend, "click": click}
    pq.write_table(pa.table(columns), folder / "p.parquet")
    build([folder / "p.parquet"], Columns(("a", "b", "twin", "age"), ("spend",), ("click",)), folder / "s", 6000)
    return Estimator(Local(folder / "s"))


def test_it_starts_at_the_query_and_ends_at_everybody(made):
    query = And((In("a", ("1",)), In("age", (20, 21)), Range("spend", 30)))
    points = curve(made, query, "click")
    assert points[0].query == query and points[0].loosened is None and points[-1].query == Everybody()
    reached = [point.reach.value for point in points]
    assert reached == sorted(set(reached)) and reached[-1] == 3000
    assert all(point.loosened for point in points[1:])
    assert any(" may be " in point.loosened for point in points[1:])


def test_what_gains_nobody_is_named_with_the_next_step(made):
    points = curve(made, And((In("b", (1,)), In("twin", (1,)))), "click")
    assert len(points) >= 2 and points[-1].query == Everybody()
    assert {"b", "twin"} <= set(" ".join(point.loosened or "" for point in points).replace(";", "").split())


def test_a_performance_that_nobody_knows_is_dearest_wherever_it_stands(made):
    first, other = In("a", ("2",)), In("b", (1,))
    for order in ((first, other), (other, first)):
        points = curve(made, And(order), "click")
        assert math.isnan(points[0].performance.value) and points[1].query == other
        assert points[1].loosened == "a does not matter"


def test_both_ends_of_a_range_are_one_criterion(made):
    points = curve(made, from_text("age >= 25 and (age < 30 and spend >= 10) and spend < 50"), "click")
    assert points[0].query == And((In("age", (25, 26, 27, 28, 29)), Range("spend", 10, 50)))
    said = "; ".join(point.loosened or "" for point in points)
    assert said.count("age does not matter") <= 1 and said.count("spend does not matter") <= 1
    with pytest.raises(AudienceError, match="nobody matches: the ranges of 'spend'"):
        curve(made, from_text("spend < 10 and spend >= 20"), "click")


def test_steps_are_said_in_few_digits_and_by_name(made):
    said = [point.loosened for point in curve(made, Range("spend", 20.123456789, 30), "click")][1:]
    assert all(len(each) < 60 for each in said) and said[-1] == "spend does not matter", said
    query = And((Not(In("b", (1,))), Or((In("a", ("1",)), In("age", (20,))))))
    said = {point.loosened for point in curve(made, query, "click")}
    assert {"b does not matter", "a and age does not matter"} == said - {None}


def test_few_steps_end_at_everybody_too(made):
    points = curve(made, And((In("age", (20,)), Range("spend", 60))), "click", steps=3)
    assert len(points) <= 4 and points[-1].query == Everybody() and "does not matter" in points[-1].loosened
