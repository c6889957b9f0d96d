"""What the columns of a population are: features with few values, numbers, measures, and who the user is."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int32]
Value = str | int | bool | None


class AudienceError(ValueError):
    """A question or a file that cannot be used, with what was expected and what to do."""


@dataclass(frozen=True)
class Feature:
    """A column with few values. values: in their order; a row holds the number of its own, -1 for one not listed."""

    name: str
    values: tuple[Value, ...]

    def code(self, value: Value) -> int:
        """The number of a value. Raises AudienceError for one the feature does not have, with the nearest."""
        for number, known in enumerate(self.values):
            if known == value and isinstance(known, bool) == isinstance(value, bool):
                return number
        raise AudienceError(f"{self.name!r} has no value {value!r}{nearest(value, self.values)}")


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

    def whole_numbers(self, name: str) -> list[int] | None:
        """The values of a feature all of whose values are whole numbers (None aside), else None."""
        for each in self.features:
            if each.name == name and all(type(value) is int for value in each.values if value is not None):
                return [value for value in each.values if isinstance(value, int)]
        return None

    def _find(self, name: str, among: Any, what: str) -> Any:
        for each in among:
            if each.name == name:
                return each
        if name in self.names:
            other = "a number; ask for a range" if what == "feature" else "a feature; ask for values"
            raise AudienceError(f"{name!r} is {other}")
        raise AudienceError(f"there is no {what} {name!r}{nearest(name, self.names)}")

    def measure(self, name: str) -> str:
        if name not in self.measures:
            raise AudienceError(f"there is no measure {name!r}{nearest(name, self.measures)}")
        return name


def nearest(wanted: object, known: Any) -> str:
    """`; did you mean 'x'?`, or the first few that there are."""
    words = {str(each).lower(): each for each in known}
    close = difflib.get_close_matches(str(wanted).lower(), words, n=1)
    if close:
        return f"; did you mean {words[close[0]]!r}?"
    some = ", ".join(repr(each) for each in list(known)[:8])
    return f"; there are {some}{', …' if len(words) > 8 else ''}" if words else "; there are none"
