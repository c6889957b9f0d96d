"""What is asked: and, or, not over values, sets and ranges. As data and as JSON; text.py has it as a line of text."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from examples.audience.reach import deadline
from examples.audience.reach.schema import AudienceError, Schema, Value

MAX_NODES = 256
"""Criteria and connectives of one query."""
MAX_VALUES = 100_000
"""Values of features that one query may ask for, ranges of whole numbers written out."""
MAX_DEPTH = 32
"""Connectives within each other."""
EXACT = 2**53
"""From here on all floating-point numbers are whole."""


@dataclass(frozen=True)
class Everybody:
    pass


@dataclass(frozen=True)
class In:
    """The feature has one of the values."""

    feature: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Range:
    """low <= number < high; an end that is None is open."""

    number: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Not:
    of: Query


@dataclass(frozen=True)
class And:
    all: tuple[Query, ...]


@dataclass(frozen=True)
class Or:
    any: tuple[Query, ...]


Query = Everybody | In | Range | Not | And | Or


def checked(query: Query, schema: Schema) -> Query:
    """The query in the schema's own terms: a range of a feature whose values are whole numbers becomes those values,
    a value of a number the range that holds it alone, None of a number what no range holds.

    Raises AudienceError for what the schema does not have, with the nearest valid name; TimeoutError when nobody waits
    for the answer any more.
    """
    deadline.check()
    _small(query, schema)
    found = _checked(query, schema)
    _small(found, schema)  # values of a number became criteria
    return found


def _small(query: Query, schema: Schema) -> None:
    parts = list(walk(query))
    if len(parts) > MAX_NODES:
        raise AudienceError(
            f"a query has at most {MAX_NODES} criteria and connectives; write several values as `in (...)`, or split it"
        )
    values = sum(len(_values(each, schema)) for each in parts)
    if values > MAX_VALUES:
        raise AudienceError(f"the query asks for {values:,} values, at most {MAX_VALUES:,}; ask for fewer or split it")


def _values(part: Query, schema: Schema) -> Sequence[object]:
    """Those that a criterion asks for, a range of whole numbers written out."""
    if isinstance(part, In):
        return part.values
    if isinstance(part, Range) and (whole := schema.whole_numbers(part.number)) is not None:
        return _places(whole, part.low, part.high)
    return ()


def _places(whole: tuple[int, ...], low: float | None, high: float | None) -> range:
    """Of the values from `low` to below `high`."""
    first = 0 if low is None else bisect_left(whole, low)
    return range(first, len(whole) if high is None else bisect_left(whole, high))


def _checked(query: Query, schema: Schema) -> Query:
    match query:
        case In(name, values):
            if schema.is_number(name) and all(value is None or type(value) is int for value in values):
                return _numbers(name, values)
            feature = schema.feature(name)
            for value in values:
                feature.code(value)
        case Range(name, low, high):
            low, high = (None if end is None else _number(end, name) for end in (low, high))
            if low is not None and high is not None and low >= high:
                raise AudienceError(f"{name!r} from {low:g} to {high:g} holds nothing: ends are low <= x < high")
            whole = schema.whole_numbers(name)
            if whole is not None:
                return In(name, tuple(whole[i] for i in _places(whole, low, high)))
            schema.number(name)
            return Range(name, low, high)
        case Not(of):
            return Not(_checked(of, schema))
        case And(parts):
            return And(tuple(_checked(each, schema) for each in parts))
        case Or(parts):
            return Or(tuple(_checked(each, schema) for each in parts))
    return query


def _numbers(name: str, values: tuple[Value, ...]) -> Query:
    """A number that is one of the values; None is a row that has none."""
    if not 1 <= len(values) <= MAX_NODES:
        raise AudienceError(
            f"of the number {name!r} ask for 1 to {MAX_NODES} values, not {len(values)}; or for a range"
        )
    found = tuple(Not(Range(name)) if value is None else exactly(name, value) for value in values)
    return found[0] if len(found) == 1 else Or(found)


def _number(end: float, name: str) -> float:
    try:
        if not math.isnan(end):
            return end
    except OverflowError:
        pass
    raise AudienceError(f"a range of {name!r} has an end that is no number, or beyond all numbers: {end!r:.40}")


def exactly(number: str, value: float) -> Range:
    return Range(number, value, after(value))


def after(end: float) -> float:
    """The next number: `x <= end` is `x < after(end)`, for whole numbers and for fractions."""
    if isinstance(end, int) and abs(end) >= EXACT:
        return end + 1
    return math.nextafter(end, math.inf)


def contradiction(query: Query) -> str | None:
    """Why nobody can match: one feature of two values at once, ranges that do not meet. None if nothing is seen."""
    if not isinstance(query, And):
        return None
    values: dict[str, set[Value]] = {}
    lows: dict[str, float] = {}
    highs: dict[str, float] = {}
    for each in query.all:
        if isinstance(each, In):
            left = values.setdefault(each.feature, set(each.values))
            left &= set(each.values)
            if not left:
                return f"no user has two values of {each.feature!r} at once"
        elif isinstance(each, Range):
            lows[each.number] = max(lows.get(each.number, -math.inf), -math.inf if each.low is None else each.low)
            highs[each.number] = min(highs.get(each.number, math.inf), math.inf if each.high is None else each.high)
            if lows[each.number] >= highs[each.number]:
                return f"the ranges of {each.number!r} have nothing in common"
    return None


def walk(query: Query) -> Iterator[Query]:
    waiting = [query]
    while waiting:
        each = waiting.pop()
        yield each
        if isinstance(each, Not):
            waiting.append(each.of)
        elif isinstance(each, And):
            waiting.extend(each.all)
        elif isinstance(each, Or):
            waiting.extend(each.any)


def to_json(query: Query) -> dict[str, Any]:
    match query:
        case Everybody():
            return {"everybody": True}
        case In(feature, values):
            return {"feature": feature, "in": list(values)}
        case Range(number, low, high):
            return {"number": number, "from": low, "to": high}
        case Not(of):
            return {"not": to_json(of)}
        case And(parts):
            return {"and": [to_json(each) for each in parts]}
        case Or(parts):
            return {"or": [to_json(each) for each in parts]}


def from_json(data: Any, depth: int = 0) -> Query:
    """Raises AudienceError with the part that is malformed."""
    if depth > MAX_DEPTH:
        raise AudienceError(f"a query is at most {MAX_DEPTH} levels deep")
    if not isinstance(data, dict):
        raise AudienceError(f"a query is an object such as {{'feature': ..., 'in': [...]}}; got {data!r:.80}")
    match data:
        case {"everybody": True, **rest} if not rest:
            return Everybody()
        case {"feature": str(name), "in": list(values), **rest} if not rest:
            return In(name, tuple(value_of(each, name) for each in values))
        case {"feature": str(name), "is": value, **rest} if not rest:
            return In(name, (value_of(value, name),))
        case {"number": str(name), **rest} if set(rest) <= {"from", "to"} and rest:
            return Range(name, end_of(rest.get("from"), name), end_of(rest.get("to"), name))
        case {"not": of, **rest} if not rest:
            return Not(from_json(of, depth + 1))
        case {"and": list(parts), **rest} if not rest and parts:
            return And(tuple(from_json(each, depth + 1) for each in parts))
        case {"or": list(parts), **rest} if not rest and parts:
            return Or(tuple(from_json(each, depth + 1) for each in parts))
    raise AudienceError(
        f"cannot read {data!r:.120}: a query is one of {{'feature': name, 'in': [values]}}, {{'feature': name, 'is': "
        "value}, {'number': name, 'from': low, 'to': high}, {'not': query}, {'and': [queries]}, {'or': [queries]}"
    )


def value_of(value: Any, name: str) -> Value:
    if value is None or isinstance(value, str | int | bool):
        return value
    raise AudienceError(f"a value of {name!r} is a text, a whole number, true, false or null; got {value!r:.40}")


def end_of(value: Any, name: str) -> float | None:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return None if value is None else _number(value, name)
    raise AudienceError(f"an end of a range of {name!r} is a number; got {value!r:.40}")
