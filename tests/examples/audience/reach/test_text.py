"""Queries as a line of text: all signs that mean something are read, other spellings are told what to write."""

import pytest

from examples.audience.reach.query import And, Everybody, In, Not, Or, Range, after
from examples.audience.reach.schema import AudienceError
from examples.audience.reach.text import OPERATORS, asked, from_text

REFUSED = "cannot read|is no criterion|is no plain value"


def test_a_line_of_text():
    found = from_text("country == 'DE' and age in (1, 2) and not premium and 1 <= spend < 2")
    no_premium = Not(In("premium", (True,)))
    assert found == And((In("country", ("DE",)), In("age", (1, 2)), no_premium, Range("spend", 1, 2)))
    assert from_text("country != 'DE' or spend >= 3 or age not in [5]") == Or(
        (Not(In("country", ("DE",))), Range("spend", 3), Not(In("age", (5,))))
    )
    assert from_text("everybody") == from_text("True") == Everybody()
    assert from_text(" premium == True ") == from_text("premium") == asked({"feature": "premium", "is": True})
    assert from_text("gender == None") == from_text("gender is None") == In("gender", (None,))
    assert from_text("gender != None") == from_text("gender is not None") == Not(In("gender", (None,)))


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("x < 2", None, 2),
        ("x <= 2", None, after(2)),
        ("x > 2", after(2), None),
        ("x >= 2", 2, None),
        ("x == 1.5", 1.5, after(1.5)),
        ("1 < x < 2", after(1), 2),
        ("1 <= x <= 2", 1, after(2)),
        ("2 > x >= -1", -1, 2),
        ("2 >= x", None, after(2)),
    ],
)
def test_ranges(text, low, high):
    assert from_text(text) == Range("x", low, high)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the query is empty; write `everybody`"),
        ("  ", "the query is empty"),
        ("country = 'DE'", "write == for"),
        ("age => 5", "write >= or <="),
        ("country <> 'DE'", "write !="),
        ("country IN ('DE', 'FR')", "write `in`"),
        ("premium AND age == 1", "write `and`"),
        ("premium && age == 1", "write `and`"),
        ("premium || age == 1", "write `or`"),
        ("!premium", "write `not`"),
        ("NOT premium", "write `not`"),
        ("premium & (age == 1)", "write `and`, `or`"),
        ("~premium", "`not`"),
        ("age between 18 and 24", "18 <= age <= 24"),
        ("city like 'B%'", "list the values"),
        ("gender is not null", "write None for null"),
        ("gender IS NULL", "write == None"),
        ("gender == null", "write None for null"),
        ("premium == true", "write True for true"),
        ("country == DE", "'DE' is a name; a text stands in quotes: 'DE'"),
        ("country in ('DE')", "for one write country == 'DE'"),
        ("marital-status == 'x'", "in JSON: {'feature'"),
        ("marital-status", "in JSON: {'feature'"),
        ("country < age", "compare one name with values"),
        ("1 < x > 0", "compare one name with values"),
        ("1 < 2", "compare one name with values"),
        ("f(1)", "is no criterion, such as"),
        ("x < True", "is a number"),
        ("x < 1" + "0" * 400, "beyond all numbers"),
        ("not " * 2000 + "p", "cannot read|levels deep"),
        ("not " * 40 + "p", "at most 32 levels deep"),
        ("x" * 20_000, "at most 16384 characters"),
        *((each, REFUSED) for each in ("country ==", "(" * 300, "__import__('os').system('true')", "[x for x in y]")),
        *((each, REFUSED) for each in ("a == " + "-" * 5000 + "1", "p\0", "a == 9**9**9", "a" + ".b" * 5000, "(a:=1)")),
    ],
)
def test_text_that_is_no_query_is_an_error_that_says_what_to_write(text, message):
    with pytest.raises(AudienceError, match=message):
        from_text(text)


def test_the_list_of_operators_is_true():
    lines = [each.strip() for line in OPERATORS.splitlines() for each in line.split("   ")]
    read = [
        from_text(each.removesuffix("(missing)")) for each in lines if each and "..." not in each and " of " not in each
    ]
    assert len(read) == 11
