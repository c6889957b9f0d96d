"""Queries as data and JSON: what is malformed is an error that helps."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.audience.reach import deadline
from examples.audience.reach.query import (
    MAX_VALUES,
    And,
    Everybody,
    In,
    Not,
    Or,
    Range,
    after,
    checked,
    contradiction,
    from_json,
    to_json,
)
from examples.audience.reach.schema import AudienceError, Feature, Number, Schema

SCHEMA = Schema(
    (Feature("country", ("DE", "US", None)), Feature("age", (1, 2, 3, 5)), Feature("premium", (False, True))),
    (Number("spend", (1.0, 2.0)),),
)
ENDS = st.none() | st.floats(allow_nan=False, allow_infinity=False)
LEAVES = (
    st.just(Everybody())
    | st.builds(In, st.sampled_from(["country", "x"]), st.lists(st.sampled_from(["DE", 1, True, None])).map(tuple))
    | st.builds(Range, st.just("spend"), ENDS, ENDS)
)
QUERIES = st.recursive(
    LEAVES,
    lambda each: (
        st.builds(Not, each)
        | st.builds(And, st.lists(each, min_size=1, max_size=3).map(tuple))
        | st.builds(Or, st.lists(each, min_size=1, max_size=3).map(tuple))
    ),
    max_leaves=12,
)


@given(QUERIES)
def test_json_there_and_back(query):
    assert from_json(to_json(query)) == query


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists, max_leaves=8))
def test_no_json_does_more_than_raise_audience_error(data):
    for body in (data, {"feature": data}, {"and": data}, {"not": data}, {"number": "x", "from": data}):
        try:
            from_json(body)
        except AudienceError as error:
            assert str(error)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (In("contry", ("DE",)), "no feature 'contry'; did you mean 'country'"),
        (In("country", ("De",)), "'country' has no value 'De'; did you mean 'DE'"),
        (In("premium", (1,)), "'premium' has no value 1"),
        (In("spend", ("1",)), "'spend' is a number; ask for a range"),
        (In("spend", (True,)), "'spend' is a number; ask for a range"),
        (In("spend", ()), "ask for 1 to 256 values"),
        (In("spend", (1,) * 300), "ask for 1 to 256 values"),
        (And((In("spend", (1,) * 200), In("spend", (2,) * 200))), "at most 256 criteria"),
        (Range("country", 1), "'country' is a feature and no number; ask for values"),
        (Range("spend", 10**400), "beyond all numbers"),
        (Range("age", None, -(10**400)), "beyond all numbers"),
        (Range("spend", 2, 1), "from 2 to 1 holds nothing"),
        (Range("spend", float("nan")), "no number"),
        (And((Everybody(),) * 300), "at most 256"),
    ],
)
def test_what_the_schema_lacks_is_an_error_with_the_nearest_name(query, message):
    with pytest.raises(AudienceError, match=message):
        checked(query, SCHEMA)


def test_a_range_of_whole_numbers_is_its_values():
    assert checked(Not(Range("age", 2)), SCHEMA) == Not(In("age", (2, 3, 5)))
    assert checked(Range("age", 1.5, 5), SCHEMA) == In("age", (2, 3))


def test_contradictions_are_named():
    assert "two values of 'country'" in contradiction(And((In("country", ("DE",)), In("country", ("US",)))))
    assert "ranges of 'spend'" in contradiction(And((Range("spend", 2), Range("spend", None, 1))))
    assert contradiction(And((In("country", ("DE",)), In("country", ("US", "DE")), Range("spend", 2)))) is None
    assert contradiction(In("country", ("DE",))) is None


def test_values_of_a_number_are_the_ranges_that_hold_them():
    assert checked(In("spend", (2,)), SCHEMA) == Range("spend", 2, 2.0000000000000004)
    assert checked(In("spend", (None,)), SCHEMA) == Not(Range("spend"))
    both = Or((Range("spend", 0, 5e-324), Not(Range("spend"))))
    assert checked(In("spend", (0, None)), SCHEMA) == both
    assert checked(both, SCHEMA) == both


@pytest.mark.parametrize("end", [0, -3, 2**53 - 1, 2**53, 10**25, 0.1, -0.1, 1e300])
def test_the_next_number_leaves_no_number_between(end):
    assert after(end) > end
    assert (
        after(end) == end + 1
        if abs(end) >= 2**53 and isinstance(end, int)
        else (end + after(end)) / 2 in (end, after(end))
    )


def test_what_is_asked_of_many_values_is_bounded_and_quick():
    many = Schema((Feature("v", tuple(range(60_000))),))
    began = time.process_time()
    assert len(checked(Range("v", 5), many).values) == 59_995
    assert checked(In("v", tuple(range(20_000))), many) == In("v", tuple(range(20_000)))
    for query in (Or((Range("v", 5), Range("v", 6))), Or((Range("v"),) * 250), In("v", (1,) * (MAX_VALUES + 1))):
        with pytest.raises(AudienceError, match="at most 100,000"):
            checked(query, many)
    with pytest.raises(AudienceError, match="has no value 'xxx"):
        checked(In("v", ("x" * 20_000,)), many)
    assert time.process_time() - began < 1


def test_nobody_waits_for_what_is_too_late():
    with deadline.within(-1), pytest.raises(TimeoutError):
        checked(Everybody(), SCHEMA)
    assert checked(Everybody(), SCHEMA) == Everybody()
