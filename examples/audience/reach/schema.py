"""What the columns of a population are: features with few values, numbers, measures, and who the user is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int32]
Value = str | int | bool | None
MOST_NAMES = 1000
"""That are compared with one that is not known, and as many as are named after it."""


class AudienceError(ValueError):
    """A question or a file that cannot be used, with what was expected and what to do."""


@dataclass(frozen=True)
class Feature:
    """A column with few values. values: in their order; a row holds the number of its own, -1 for one not listed."""

    name: str
    values: tuple[Value, ...]

    def code(self, value: Value) -> int:
        """The number of a value. Raises AudienceError for one the feature does not have, with the nearest."""
        number = self._codes.get((isinstance(value, bool), value))
        if number is None:
            raise AudienceError(f"{self.name!r} has no value {value!r:.80}{nearest(value, self.values)}")
        return number

    @cached_property
    def whole(self) -> tuple[int, ...] | None:
        """Its values, ascending, if all of them are whole numbers (None aside), else None."""
        known = [value for value in self.values if value is not None]
        return tuple(sorted(known)) if all(type(value) is int for value in known) else None

    @cached_property
    def _codes(self) -> dict[tuple[bool, Value], int]:
        return {(isinstance(value, bool), value): number for number, value in enumerate(self.values)}


@dataclass(frozen=True)
class Number:
    """A column of numbers. edges: between its buckets, which only the strata need; questions are of the numbers."""

    name: str
    edges: tuple[float, ...]

    def codes(self, values: NDArray[np.float64]) -> Codes:
        """Buckets 0 to len(edges), and one more for no number."""
        found = np.searchsorted(self.edges, values, side="right").astype(np.int32)
        return np.where(np.isnan(values), len(self.edges) + 1, found).astype(np.int32)


@dataclass(frozen=True)
class Schema:
    """features, numbers: what can be asked for. measures: columns to sum and average. user: the column that names the
    user, if rows are impressions and users are to be counted."""

    features: tuple[Feature, ...]
    numbers: tuple[Number, ...] = ()
    measures: tuple[str, ...] = ()
    user: str | None = None

    @property
    def names(self) -> list[str]:
        return [each.name for each in (*self.features, *self.numbers)]

    def feature(self, name: str) -> Feature:
        return self._find(name, self.features, "feature")

    def number(self, name: str) -> Number:
        return self._find(name, self.numbers, "number")

    def is_number(self, name: str) -> bool:
        """Whether a range of it is asked, and no values."""
        return any(each.name == name for each in self.numbers) and all(each.name != name for each in self.features)

    def whole_numbers(self, name: str) -> tuple[int, ...] | None:
        """The values of a feature all of whose values are whole numbers (None aside), ascending, else None."""
        return next((each.whole for each in self.features if each.name == name), None)

    def _find(self, name: str, among: Any, what: str) -> Any:
        for each in among:
            if each.name == name:
                return each
        if name in self.names:
            number, feature = f"a number; ask for a range: {name} >= 1", "a feature and no number; ask for values"
            raise AudienceError(f"{name!r} is {number if what == 'feature' else feature}")
        raise AudienceError(f"there is no {what} {name!r:.80}{nearest(name, self.names)}")

    def measure(self, name: str) -> str:
        if name not in self.measures:
            raise AudienceError(f"there is no measure {name!r:.80}{nearest(name, self.measures)}")
        return name


def nearest(wanted: object, known: Iterable[object]) -> str:
    """`; did you mean 'x'?`, or the first few that there are. Of very many only those that begin alike are compared."""
    words = {str(each).lower(): each for each in known}
    word = str(wanted)[:80].lower()
    alike = words if len(words) <= MOST_NAMES else [each for each in words if each[:2] == word[:2]][:MOST_NAMES]
    close = difflib.get_close_matches(word, alike, n=1)
    if close:
        return f"; did you mean {words[close[0]]!r}?"
    some = ", ".join(repr(each) for each in list(words.values())[:8])
    return f"; there are {some}{', …' if len(words) > 8 else ''}" if words else "; there are none"
