"""Queries as data, JSON and text: what is malformed is an error that helps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.audience.reach.query import (
    And,
    Everybody,
    In,
    Not,
    Or,
    Range,
    checked,
    contradiction,
    from_json,
    from_text,
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


def test_a_line_of_text():
    found = from_text("country == 'DE' and age in (1, 2) and not premium and 1 <= spend < 2")
    no_premium = Not(In("premium", (True,)))
    assert found == And((In("country", ("DE",)), In("age", (1, 2)), no_premium, Range("spend", 1, 2)))
    assert from_text("country != 'DE' or spend >= 3 or age not in [5]") == Or(
        (Not(In("country", ("DE",))), Range("spend", 3), Not(In("age", (5,))))
    )
    assert from_text("everybody") == Everybody()


@pytest.mark.parametrize(
    "text",
    [
        *("", "country ==", "f(1)", "country == x", "country < age", "1 < spend < 2", "country in 'DE'", "spend > 1"),
        *("(" * 300, "__import__('os').system('true')", "spend == 1.5", "[x for x in y]", "x" * 20_000),
    ],
)
def test_text_that_is_no_query_is_an_error(text):
    with pytest.raises(AudienceError):
        from_text(text)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (In("contry", ("DE",)), "no feature 'contry'; did you mean 'country'"),
        (In("country", ("De",)), "'country' has no value 'De'; did you mean 'DE'"),
        (In("premium", (1,)), "'premium' has no value 1"),
        (In("spend", (1,)), "'spend' is a number; ask for a range"),
        (Range("country", 1), "'country' is a feature; ask for values"),
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
