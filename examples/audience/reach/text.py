"""A query as a line of text, in Python's spelling of comparisons; what people write in other spellings is said.

country == "DE" and age in (18, 19) and not premium and 10 <= spend < 20
"""

from __future__ import annotations

import ast
import re
from typing import Any

from examples.audience.reach.query import (
    MAX_DEPTH,
    And,
    Everybody,
    In,
    Not,
    Or,
    Query,
    Range,
    after,
    end_of,
    exactly,
    from_json,
    value_of,
)
from examples.audience.reach.schema import AudienceError

MAX_TEXT = 16_384
"""Characters of one query."""
OPERATORS = """country == 'DE'       country != 'DE'       country in ('DE', 'FR')       country not in ('DE', 'FR')
premium               not premium           gender == None (missing)
18 <= age < 25        age > 18              age <= 24        of numbers and of features that are whole numbers
... and ...           ... or ...            not (...)        everybody"""
SPELLINGS = (
    (r"=[<>]", "write >= or <="),
    (r"(?<![=<>!])=(?![=<>])", "write == for 'is equal to'"),
    (r"<>", "write != for 'is not equal to'"),
    (r"&&|\bAND\b", "write `and`"),
    (r"\|\||\bOR\b", "write `or`"),
    (r"!(?!=)|\bNOT\b", "write `not`"),
    (r"\bIN\b", "write `in`, as in country in ('DE', 'FR')"),
    (r"(?i)\bbetween\b", "write 18 <= age <= 24 for 'between'"),
    (r"(?i)\blike\b", "there are no patterns: list the values, as in city in ('Bonn', 'Berlin')"),
    (r"(?i)\bis\s+(not\s+)?null\b", "write == None or != None"),
)
"""What is no Python, and what to write."""
WORDS = {"true": "True", "false": "False", "null": "None", "none": "None", "nan": "None"}
FLIPPED = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE}


def asked(data: Any) -> Query:
    """A query that is a line of text or JSON."""
    return from_text(data) if isinstance(data, str) else from_json(data)


def from_text(text: str) -> Query:
    """Names that are no identifiers: use JSON. Raises AudienceError that says what to write."""
    if len(text) > MAX_TEXT:
        raise AudienceError(f"a query has at most {MAX_TEXT} characters; this one has {len(text)}")
    text = text.strip()
    if not text:
        raise AudienceError("the query is empty; write `everybody` for all, or a criterion such as country == 'DE'")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise AudienceError(f"cannot read {text[:80]!r}: {_meant(text) or getattr(error, 'msg', error)}") from None
    return _of(tree.body, text, 0)


def _meant(text: str) -> str:
    bare = re.sub(r"'[^']*'|\"[^\"]*\"", "''", text)
    return "; ".join(words for spelling, words in SPELLINGS if re.search(spelling, bare))


def _of(node: ast.expr, text: str, depth: int) -> Query:
    if depth > MAX_DEPTH:
        raise AudienceError(f"a query is at most {MAX_DEPTH} levels deep")
    match node:
        case ast.BoolOp(ast.And(), parts):
            return And(tuple(_of(each, text, depth + 1) for each in parts))
        case ast.BoolOp(ast.Or(), parts):
            return Or(tuple(_of(each, text, depth + 1) for each in parts))
        case ast.UnaryOp(ast.Not(), of):
            return Not(_of(of, text, depth + 1))
        case ast.Name("everybody") | ast.Constant(True):
            return Everybody()
        case ast.Name(name):
            return In(name, (True,))
        case ast.Compare(ast.Name(name), [ast.Eq() | ast.Is()], [value]):
            return _equal(name, _literal(value, text))
        case ast.Compare(ast.Name(name), [ast.NotEq() | ast.IsNot()], [value]):
            return Not(_equal(name, _literal(value, text)))
        case ast.Compare(ast.Name(name), [ast.In() | ast.NotIn() as op], [values]):
            found = _literal(values, text)
            if not isinstance(found, tuple | list | set):
                raise AudienceError(f"`in` wants values in brackets; for one write {name} == {found!r:.40}")
            query = In(name, tuple(value_of(each, name) for each in found))
            return Not(query) if isinstance(op, ast.NotIn) else query
        case ast.BinOp(_, ast.BitAnd() | ast.BitOr(), _) | ast.UnaryOp(ast.Invert(), _):
            raise AudienceError("write `and`, `or` and `not` in place of &, | and ~")
        case ast.BinOp() | ast.Compare(ast.BinOp()):
            raise AudienceError(
                f"{_source(node, text)!r} is no criterion; a name of other characters than letters, digits and _ is "
                "asked for in JSON: {'feature': 'marital-status', 'is': 'Divorced'}"
            )
        case ast.Compare(left, ops, others):
            return _range([left, *others], ops, text)
    raise AudienceError(f"{_source(node, text)!r} is no criterion, such as country == 'DE', age in (1, 2), premium")


def _equal(name: str, value: Any) -> Query:
    return exactly(name, value) if isinstance(value, float) else In(name, (value_of(value, name),))


def _range(terms: list[ast.expr], ops: list[ast.cmpop], text: str) -> Query:
    """low <= name < high, in any order and with any of the four signs."""
    names = {term.id for term in terms if isinstance(term, ast.Name) and term.id.lower() not in WORDS}
    whole = ast.unparse(ast.Compare(terms[0], ops, terms[1:]))
    wrong = f"cannot read {whole[:80]!r}: compare one name with values, as in 18 <= age < 25 or country == 'DE'"
    if len(names) != 1:
        raise AudienceError(wrong)
    [name] = names
    low: float | None = None
    high: float | None = None
    for left, op, right in zip(terms, ops, terms[1:], strict=False):
        if isinstance(left, ast.Name) == isinstance(right, ast.Name) or type(op) not in FLIPPED:
            raise AudienceError(wrong)
        kind, end = (type(op), right) if isinstance(left, ast.Name) else (FLIPPED[type(op)], left)
        value = end_of(_literal(end, text), name)
        if value is None or (high if kind in (ast.Lt, ast.LtE) else low) is not None:
            raise AudienceError(wrong)
        if kind in (ast.Lt, ast.LtE):
            high = after(value) if kind is ast.LtE else value
        else:
            low = after(value) if kind is ast.Gt else value
    return Range(name, low, high)


def _literal(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Name):
        word = WORDS.get(node.id.lower())
        wrong = f"write {word} for {node.id}" if word else f"{node.id!r} is a name; a text stands in quotes"
        raise AudienceError(wrong if word else f"{wrong}: '{node.id}'")
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise AudienceError(f"{_source(node, text)!r} is no plain value") from None


def _source(node: ast.expr, text: str) -> str:
    return (ast.get_source_segment(text, node) or text)[:80]
