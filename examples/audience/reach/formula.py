"""A question as criteria of single features and what must hold of them: a table of 2^k cells, k criteria.

A row is in the cell whose number has bit j where criterion j holds for it. Whatever and, or and not make of the
criteria, the answer is a sum of cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import numpy as np

from examples.audience.reach.query import And, Everybody, In, Not, Or, Query
from examples.audience.reach.schema import Schema

Atom = tuple[str, tuple[int, ...]]
"""A feature and the codes that match; the code after its last value is that of values the schema lacks."""
MOST = 8
"""Criteria of a question that is answered by cells."""


@dataclass(frozen=True, eq=False)
class Formula:
    """atoms: sorted by feature in the schema's order; true [2^k] bool: the cells that the question is about."""

    atoms: tuple[Atom, ...]
    true: np.ndarray

    @property
    def features(self) -> list[tuple[str, list[tuple[int, ...]]]]:
        """Each feature and the codes of its criteria."""
        return [(name, [codes for _, codes in own]) for name, own in groupby(self.atoms, key=lambda atom: atom[0])]


def formula(query: Query, schema: Schema) -> Formula | None:
    """The query as cells; None if it asks for ranges of numbers, for too much, or for nothing."""
    found = conjunction(query, schema)
    atoms: Sequence[Atom] = found if found is not None else sorted(set(_atoms(query, schema) or ()))
    if not 1 <= len(atoms) <= MOST:
        return None
    order = {feature.name: i for i, feature in enumerate(schema.features)}
    atoms = tuple(sorted(atoms, key=lambda atom: (order[atom[0]], atom[1])))
    if found is not None:
        return of_trial(atoms)
    number = np.arange(2 ** len(atoms))
    bits = {atom: (number >> j & 1).astype(bool) for j, atom in enumerate(atoms)}
    return Formula(atoms, _true(query, schema, bits))


def of_trial(atoms: Sequence[Atom]) -> Formula:
    """All criteria hold. Atoms in the schema's order."""
    true = np.zeros(2 ** len(atoms), bool)
    true[-1] = True
    return Formula(tuple(atoms), true)


def conjunction(query: Query, schema: Schema) -> tuple[Atom, ...] | None:
    """A query as a conjunction of criteria of different features, or None if it is something else."""
    found: dict[str, set[int]] = {}
    for part in query.all if isinstance(query, And) else (query,):
        if isinstance(part, And):
            inner = conjunction(part, schema)
            if inner is None:
                return None
            parts = dict(inner)
        elif isinstance(part, In):
            parts = dict([_atom(part, schema)])
        elif isinstance(part, Not) and isinstance(part.of, In):
            name, without = _atom(part.of, schema)
            places = len(schema.feature(name).values) + 1
            parts = {name: tuple(code for code in range(places) if code not in without)}
        else:
            return None
        for name, codes in parts.items():
            found[name] = found[name] & set(codes) if name in found else set(codes)
    return tuple((name, tuple(sorted(codes))) for name, codes in found.items())


def _atom(part: In, schema: Schema) -> Atom:
    feature = schema.feature(part.feature)
    return part.feature, tuple(sorted({feature.code(value) for value in part.values}))


def _atoms(query: Query, schema: Schema) -> list[Atom] | None:
    """All criteria; None where one is no criterion of a feature."""
    match query:
        case In():
            return [_atom(query, schema)]
        case Everybody():
            return []
        case Not(of):
            return _atoms(of, schema)
        case And(parts) | Or(parts):
            found = [_atoms(each, schema) for each in parts]
            return None if None in found else [atom for own in found for atom in own or ()]
    return None


NOBODY = Not(Everybody())


def within(query: Query, schema: Schema) -> tuple[Query, Query]:
    """Of a query that is no formula two that are: who matches it surely, and who may. They differ in whatever is no
    criterion of a feature, or is one too many. `Everybody` and `NOBODY` are written so and not otherwise."""
    atoms = dict.fromkeys(_leaves(query, schema))
    known = set(list(atoms)[:MOST])
    return _assumed(query, schema, known, False), _assumed(query, schema, known, True)


def _leaves(query: Query, schema: Schema) -> list[Atom]:
    match query:
        case In():
            return [_atom(query, schema)]
        case Not(of):
            return _leaves(of, schema)
        case And(parts) | Or(parts):
            return [atom for each in parts for atom in _leaves(each, schema)]
    return []


def _assumed(query: Query, schema: Schema, known: set[Atom], say: bool) -> Query:
    """The query if all that is not known is as `say` has it."""
    match query:
        case Everybody():
            return query
        case In():
            return query if _atom(query, schema) in known else Everybody() if say else NOBODY
        case Not(of):
            inner = _assumed(of, schema, known, not say)
            return NOBODY if inner == Everybody() else Everybody() if inner == NOBODY else Not(inner)
        case And(parts):
            found = [_assumed(each, schema, known, say) for each in parts]
            left = tuple(each for each in found if each != Everybody())
            return NOBODY if NOBODY in left else left[0] if len(left) == 1 else And(left) if left else Everybody()
        case Or(parts):
            found = [_assumed(each, schema, known, say) for each in parts]
            left = tuple(each for each in found if each != NOBODY)
            return Everybody() if Everybody() in left else left[0] if len(left) == 1 else Or(left) if left else NOBODY
    return Everybody() if say else NOBODY


def _true(query: Query, schema: Schema, bits: Mapping[Atom, np.ndarray]) -> np.ndarray:
    match query:
        case In():
            return bits[_atom(query, schema)]
        case Not(of):
            return ~_true(of, schema, bits)
        case And(parts):
            return np.all([_true(each, schema, bits) for each in parts], axis=0)
        case Or(parts):
            return np.any([_true(each, schema, bits) for each in parts], axis=0)
    return np.ones(len(next(iter(bits.values()))), bool)


@lru_cache
def sums(k: int) -> np.ndarray:
    """[2^k, 2^k]: times cells it gives, for each set of criteria, how many rows all of them hold for."""
    number = np.arange(2**k)
    return (number[None] & number[:, None] == number[:, None]).astype(float)


@lru_cache
def cells(k: int) -> np.ndarray:
    """The inverse of `sums`: by inclusion and exclusion."""
    return np.linalg.inv(sums(k)).round()


def signatures(codes: Sequence[tuple[int, ...]], places: int) -> np.ndarray:
    """[2^a, places]: 1 where a place of a feature is in the cell of its a criteria."""
    number = np.zeros(places, np.int64)
    for j, own in enumerate(codes):
        number[list(own)] |= 1 << j
    return (np.arange(2 ** len(codes))[:, None] == number).astype(float)
