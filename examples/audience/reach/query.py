"""What is asked: and, or, not over values, sets and ranges. As data, as JSON, and as a line of text.

country == "DE" and age in ("18-24", "25-34") and not premium and 10 <= spend < 20
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from examples.audience.reach.schema import AudienceError, Schema, Value

MAX_NODES = 256
"""Criteria and connectives of one query."""
MAX_TEXT = 16_384
"""Characters of one query."""


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
    """The query in the schema's own terms: a range of a feature whose values are whole numbers becomes those values.

    Raises AudienceError for what the schema does not have, with the nearest valid name.
    """
    if sum(1 for _ in _walk(query)) > MAX_NODES:
        raise AudienceError(f"a query has at most {MAX_NODES} criteria and connectives; split this one")
    return _checked(query, schema)


def _checked(query: Query, schema: Schema) -> Query:
    match query:
        case In(name, values):
            feature = schema.feature(name)
            for value in values:
                feature.code(value)
        case Range(name, low, high):
            if any(end is not None and math.isnan(end) for end in (low, high)):
                raise AudienceError(f"a range of {name!r} has an end that is no number")
            if low is not None and high is not None and low >= high:
                raise AudienceError(f"{name!r} from {low:g} to {high:g} holds nothing: ends are low <= x < high")
            values = schema.whole_numbers(name)
            if values is None:
                schema.number(name)
            else:
                inside = (v for v in values if (low is None or low <= v) and (high is None or v < high))
                return In(name, tuple(inside))
        case Not(of):
            return Not(_checked(of, schema))
        case And(parts):
            return And(tuple(_checked(each, schema) for each in parts))
        case Or(parts):
            return Or(tuple(_checked(each, schema) for each in parts))
    return query


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


def _walk(query: Query) -> Iterator[Query]:
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
    if isinstance(data, str) and depth == 0:
        return from_text(data)
    if depth > 32:
        raise AudienceError("a query is at most 32 levels deep")
    if not isinstance(data, dict):
        raise AudienceError(f"a query is an object such as {{'feature': ..., 'in': [...]}}; got {data!r:.80}")
    match data:
        case {"everybody": True, **rest} if not rest:
            return Everybody()
        case {"feature": str(name), "in": list(values), **rest} if not rest:
            return In(name, tuple(_value(each, name) for each in values))
        case {"feature": str(name), "is": value, **rest} if not rest:
            return In(name, (_value(value, name),))
        case {"number": str(name), **rest} if set(rest) <= {"from", "to"} and rest:
            return Range(name, _end(rest.get("from"), name), _end(rest.get("to"), name))
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


def _value(value: Any, name: str) -> Value:
    if value is None or isinstance(value, str | int | bool):
        return value
    raise AudienceError(f"a value of {name!r} is a text, a whole number, true, false or null; got {value!r:.40}")


def _end(value: Any, name: str) -> float | None:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise AudienceError(f"an end of a range of {name!r} is a number; got {value!r:.40}")


def from_text(text: str) -> Query:
    """A query from a line in Python's spelling of comparisons. Names that are no identifiers: use JSON."""
    if len(text) > MAX_TEXT:
        raise AudienceError(f"a query has at most {MAX_TEXT} characters; this one has {len(text)}")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise AudienceError(f"cannot read {text[:80]!r}: {getattr(error, 'msg', error)}") from None
    return _of(tree.body, text)


def _of(node: ast.expr, text: str) -> Query:
    match node:
        case ast.BoolOp(ast.And(), parts):
            return And(tuple(_of(each, text) for each in parts))
        case ast.BoolOp(ast.Or(), parts):
            return Or(tuple(_of(each, text) for each in parts))
        case ast.UnaryOp(ast.Not(), of):
            return Not(_of(of, text))
        case ast.Name("everybody"):
            return Everybody()
        case ast.Name(name):
            return In(name, (True,))
        case ast.Compare(ast.Name(name), [ast.Eq()], [value]):
            return In(name, (_value(_literal(value, text), name),))
        case ast.Compare(ast.Name(name), [ast.NotEq()], [value]):
            return Not(In(name, (_value(_literal(value, text), name),)))
        case ast.Compare(ast.Name(name), [ast.In() | ast.NotIn() as op], [values]):
            found = _literal(values, text)
            if not isinstance(found, tuple | list | set):
                raise AudienceError(f"`in` wants values in brackets; got {found!r:.40}")
            query = In(name, tuple(_value(each, name) for each in found))
            return Not(query) if isinstance(op, ast.NotIn) else query
        case ast.Compare(ast.Name(name), [ast.Lt()], [high]):
            return Range(name, None, _end(_literal(high, text), name))
        case ast.Compare(ast.Name(name), [ast.GtE()], [low]):
            return Range(name, _end(_literal(low, text), name))
        case ast.Compare(low, [ast.LtE(), ast.Lt()], [ast.Name(name), high]):
            return Range(name, _end(_literal(low, text), name), _end(_literal(high, text), name))
        case ast.Compare(ast.Name(name), _, _):
            raise AudienceError(f"of {name!r} ask ==, !=, in, not in, < or >=, or low <= {name} < high")
    raise AudienceError(f"cannot read {ast.get_source_segment(text.strip(), node) or text!r}: expected a criterion")


def _literal(node: ast.expr, text: str) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        raise AudienceError(f"{ast.get_source_segment(text.strip(), node)!r} is no plain value") from None
