"""What a column of a file may hold, by the use it is put to. Every refusal names the file and the column, says what was
expected and what came, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from examples.audience.reach.schema import AudienceError, Feature

TEXT, WHOLE, TRUTH, FRACTIONS, DECIMALS = "text", "whole numbers", "true and false", "fractions", "decimals"
NOTHING, TIME, OTHER = "nothing", "dates or times", "something else"
ALLOWED = {
    "feature": (TEXT, WHOLE, TRUTH),
    "number": (WHOLE, FRACTIONS, DECIMALS, TRUTH),
    "measure": (WHOLE, FRACTIONS, DECIMALS, TRUTH),
    "user": (TEXT, WHOLE),
}
"""By use, beside nothing at all: a column that is missing in every row of a file goes with anything."""
EXPECTED = {
    "feature": "text, whole numbers or true and false",
    "number": "numbers",
    "measure": "numbers",
    "user": "text or whole numbers",
}
WHAT_TO_DO = {
    ("feature", FRACTIONS): "name it a number, or write it as whole numbers (in pandas Int64, which has missing ones)",
    ("feature", DECIMALS): "name it a number, or write it as text",
    ("feature", TIME): "write it as text such as 2026-11-29",
    ("number", TEXT): "name it a feature, or write it as numbers",
    ("number", TIME): "write it as whole numbers, such as days or seconds since 1970",
    ("measure", TEXT): "write it as numbers",
    ("measure", TIME): "write it as whole numbers, such as days or seconds since 1970",
    ("user", FRACTIONS): "write it as whole numbers (in pandas Int64)",
}
EXACT = 2**53
"""Up to which float64 holds every whole number."""


def kind(of: pa.DataType) -> str:
    """In a word; columns of one kind may stand beside each other in several files, whatever their types."""
    if pa.types.is_dictionary(of):
        of = of.value_type
    for word, tests in _TESTS.items():
        if any(test(of) for test in tests):
            return word
    return OTHER


_TESTS = {
    TEXT: (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
    WHOLE: (pa.types.is_integer,),
    TRUTH: (pa.types.is_boolean,),
    FRACTIONS: (pa.types.is_floating,),
    DECIMALS: (pa.types.is_decimal,),
    NOTHING: (pa.types.is_null,),
    TIME: (pa.types.is_temporal,),
}


def checked(path: Path, there: pa.Schema, uses: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Feature or user -> its kind. uses: use -> names. Raises AudienceError for a column that is not there or unfit."""
    named = list(dict.fromkeys(name for names in uses.values() for name in names))
    if missing := [name for name in named if name not in there.names]:
        raise AudienceError(f"{path} has no columns {missing}; it has {there.names}")
    if twice := [name for name in named if there.names.count(name) > 1]:
        raise AudienceError(f"{path} has several columns {twice[0]!r}; write the file with one")
    found = {}
    for use, names in uses.items():
        for name in names:
            own = there.field(name).type
            found[use, name] = kind(own)
            if found[use, name] not in (*ALLOWED[use], NOTHING):
                advice = WHAT_TO_DO.get((use, kind(own)), "write it so, or leave it out")
                raise AudienceError(f"{path}: {use} {name!r} holds {own}; expected {EXPECTED[use]}; {advice}")
    return {name: own for (use, name), own in found.items() if use in ("feature", "user")}


def agreed(files: Iterable[tuple[Path, Mapping[str, str]]], known: Mapping[str, str] | None = None) -> None:
    """Raises AudienceError where a column is of one kind here and of another there: 1, '1' and true are three values.

    files: each with its columns' kinds; known: those of the sample that is refreshed.
    """
    first = {name: ("the sample", own) for name, own in (known or {}).items() if own != NOTHING}
    for path, kinds in files:
        for name, own in kinds.items():
            if own == NOTHING:
                continue
            other, expected = first.setdefault(name, (str(path), own))
            if own != expected:
                raise AudienceError(
                    f"{path}: {name!r} holds {own}; expected {expected}, as in {other}; write it alike in all files"
                )


def kind_of(feature: Feature) -> str:
    """Of the values that it lists."""
    words = {str: TEXT, int: WHOLE, bool: TRUTH}
    return next((words[type(value)] for value in feature.values if value is not None), NOTHING)


def countable(path: Path, name: str, column: pa.ChunkedArray) -> None:
    """Raises AudienceError for a number that float64 does not tell from its neighbours: ranges of it would be wrong."""
    of = column.type
    if not (pa.types.is_integer(of) and of.bit_width == 64) and not pa.types.is_decimal(of):
        return
    scale = of.scale if pa.types.is_decimal(of) else 0
    ends = [end for end in pc.min_max(column).as_py().values() if end is not None]
    if beyond := [end for end in ends if abs(end) * 10**scale > EXACT]:
        raise AudienceError(
            f"{path}: number {name!r} holds {beyond[0]}; expected at most 2^53 (of its smallest unit), beyond which "
            "numbers are rounded; write it in larger units, or name it a feature"
        )


def of_views(of: pa.DataType) -> bool:
    """Text that is kept as views, or a dictionary of these."""
    return bool(pa.types.is_string_view(of.value_type if pa.types.is_dictionary(of) else of))


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column without its encoding: of dictionaries the values, of views text."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.large_string()) if pa.types.is_string_view(column.type) else column


def coded(column: pa.ChunkedArray, feature: Feature) -> np.ndarray:
    """The number of each value among the feature's, [N] int32, -1 where it is not there.

    The column's type may be narrower than the feature's values are: those that it cannot hold do not occur in it.
    """
    column = plain(column)
    known, places = _known(feature, column.type)
    return places[pc.fill_null(pc.index_in(column, value_set=known, skip_nulls=False), -1).to_numpy()]


@lru_cache(256)
def _known(feature: Feature, of: pa.DataType) -> tuple[pa.Array, np.ndarray]:
    """The values that a column of the type can hold, and the number of each; after the last -1."""
    places = [i for i, value in enumerate(feature.values) if _holds(of, value)]
    return pa.array([feature.values[i] for i in places], of), np.array([*places, -1], np.int32)


def _holds(of: pa.DataType, value: object) -> bool:
    if value is None or not pa.types.is_integer(of):
        return value is None or not pa.types.is_null(of)
    signed = pa.types.is_signed_integer(of)
    low, high = (-(2 ** (of.bit_width - 1)), 2 ** (of.bit_width - 1)) if signed else (0, 2**of.bit_width)
    return isinstance(value, int) and low <= value < high


def floats(column: pa.ChunkedArray) -> np.ndarray:
    """[N] float64, the nearest to each number; a missing one is NaN."""
    found = plain(column).cast(pa.float64(), safe=False)
    return pc.fill_null(found, float("nan")).to_numpy()
