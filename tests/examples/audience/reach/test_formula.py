"""Questions as cells: whatever and, or and not make of criteria, the cells are those in which it holds."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.audience.reach.formula import MOST, NOBODY, cells, conjunction, formula, signatures, sums, within
from examples.audience.reach.query import And, Everybody, In, Not, Or, Range
from examples.audience.reach.schema import Feature, Number, Schema
from tests.examples.audience.reach.population import matches

SCHEMA = Schema(
    (Feature("a", ("x", "y", "z")), Feature("b", (0, 1)), Feature("c", ("p", "q", "r"))), (Number("n", ()),)
)
COLUMNS = {
    "a": np.array([*"xyz"] * 6),
    "b": np.repeat([0, 1], 9),
    "c": np.array([*"ppp", *"qqq", *"rrr"] * 2),
}
LEAF = st.sampled_from(SCHEMA.features).flatmap(
    lambda f: st.lists(st.sampled_from(f.values), max_size=3).map(lambda v: In(f.name, tuple(v)))
)
QUERY = st.recursive(
    LEAF | st.just(Everybody()),
    lambda each: (
        st.builds(Not, each)
        | st.builds(lambda v: And(tuple(v)), st.lists(each, min_size=1, max_size=3))
        | st.builds(lambda v: Or(tuple(v)), st.lists(each, min_size=1, max_size=3))
    ),
    max_leaves=5,
)


@given(QUERY)
@settings(max_examples=150, deadline=None)
def test_the_cells_of_a_question_are_the_rows_that_match(query):
    found = formula(query, SCHEMA)
    if found is None:  # nothing is asked for
        assert not any(isinstance(each, In) for each in walk(query))
        return
    names = [name for name, _ in found.atoms]
    assert names == sorted(names)
    cell = np.zeros(18, np.int64)
    for j, (name, codes) in enumerate(found.atoms):
        values = SCHEMA.feature(name).values
        cell |= np.isin(COLUMNS[name], [values[c] for c in codes if c < len(values)]).astype(np.int64) << j
    assert (found.true[cell] == matches(query, COLUMNS)).all()


def walk(query):
    yield query
    for each in getattr(query, "all", ()) or getattr(query, "any", ()) or ([query.of] if hasattr(query, "of") else ()):
        yield from walk(each)


def test_what_cells_do_not_answer():
    assert formula(And((In("a", ("x",)), Range("n", 1))), SCHEMA) is None
    many = tuple(In("a", (v,)) for v in "xyz") + tuple(Not(In("c", (v,))) for v in "pqr") + (In("b", (0,)),)
    assert formula(Or(many), SCHEMA) is not None and len(many) < MOST
    wide = Schema(tuple(Feature(f"f{i}", (0, 1)) for i in range(MOST + 1)))
    assert formula(Or(tuple(In(each.name, (1,)) for each in wide.features)), wide) is None


def test_not_means_values_that_are_not_listed_too():
    assert conjunction(Not(In("b", (1,))), SCHEMA) == (("b", (0, 2)),)  # 2: a value that came after the schema


def test_sums_and_cells_are_inverse():
    counts = np.arange(8.0)
    assert (cells(3) @ (sums(3) @ counts) == counts).all()
    assert sums(3)[0] @ counts == counts.sum() and sums(3)[0b101] @ counts == counts[0b101] + counts[0b111]


def test_signatures():
    assert signatures([(0, 1), (1,)], 3).tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_who_matches_surely_and_who_may():
    """A range, or a criterion too many, holds for nobody or for everybody."""
    schema = Schema(tuple(Feature(f"f{i}", (0, 1)) for i in range(10)), (Number("x", (0.0,)),))
    a, b, x = In("f0", (1,)), In("f1", (0,)), Range("x", 0)
    assert within(And((a, x)), schema) == (NOBODY, a)
    assert within(Or((a, x)), schema) == (a, Everybody())
    assert within(And((a, Not(x))), schema) == (NOBODY, a)
    assert within(Not(And((a, x))), schema) == (Not(a), Everybody())
    assert within(And((a, Or((b, x)))), schema) == (And((a, b)), a)
    assert within(Everybody(), schema) == (Everybody(), Everybody())
    assert within(Not(Or((x, Not(x)))), schema) == (NOBODY, Everybody())
    many = And(tuple(In(f"f{i}", (1,)) for i in range(10)))
    surely, perhaps = within(many, schema)
    assert surely == NOBODY and perhaps == And(many.all[:8]) and formula(perhaps, schema) is not None
