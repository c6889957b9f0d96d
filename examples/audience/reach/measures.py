"""What the whole population says of a measure: its ends and its power sums, from which follows how far a row that was
not drawn can pull a total or a mean away."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from examples.audience.reach.columns import MEASURE
from examples.audience.reach.schema import AudienceError


@dataclass(frozen=True)
class Spread:
    """low, high: the smallest and the largest value; rows: that have one; powers: sums of y, y^2, y^3 and y^4."""

    low: float = 0.0
    high: float = 0.0
    rows: int = 0
    powers: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def __add__(self, other: Spread) -> Spread:
        if not (self.rows and other.rows):
            return self if self.rows else other
        first, second, third, fourth = (a + b for a, b in zip(self.powers, other.powers, strict=True))
        low, high = min(self.low, other.low), max(self.high, other.high)
        return Spread(low, high, self.rows + other.rows, (first, second, third, fourth))

    @property
    def jump(self) -> float:
        """How large the values are that a total is made of: sqrt(sum y^4 / sum y^2); 1 of zeros and ones."""
        return self._rooted(self.powers[3], self.powers[1], max(abs(self.low), abs(self.high)))

    @property
    def away(self) -> float:
        """The same of the values' distances from their mean."""
        if not self.rows:
            return 0.0
        one, two, three, four = (power / self.rows for power in self.powers)
        square = two - one**2
        fourth = four - 4 * one * three + 6 * one**2 * two - 3 * one**4
        lost = square < 1e-7 * two or fourth < 1e-7 * four  # nothing is left of so many digits
        return self.high - self.low if lost else self._rooted(fourth, square, self.high - self.low)

    def _rooted(self, fourth: float, square: float, most: float) -> float:
        found = math.sqrt(fourth / square) if square > 0 and math.isfinite(fourth) else most
        return min(found, most)


def of_values(values: np.ndarray) -> Spread:
    """NaN is no value."""
    known = values[~np.isnan(values)]
    if not len(known):
        return Spread()
    with np.errstate(over="ignore"):  # a power that is too large is infinite, and then its ends speak
        one, two, three, four = (float((known**power).sum()) for power in (1, 2, 3, 4))
    return Spread(float(known.min()), float(known.max()), len(known), (one, two, three, four))


def spreads(table: pa.Table, measures: Sequence[str], path: Path) -> dict[str, Spread]:
    """Of every measure's column. Raises AudienceError for values that are infinite: no total or mean has a number."""
    found = {}
    for name in measures:
        values = table[MEASURE + name].to_numpy()
        if infinite := int(np.isinf(values).sum()):
            raise AudienceError(
                f"{path}: measure {name!r} is infinite in {infinite} rows; write a number there, or null for unknown"
            )
        found[name] = of_values(values)
    return found


def joined(parts: Iterable[dict[str, Spread]]) -> dict[str, Spread]:
    """Of all files."""
    found: dict[str, Spread] = {}
    for part in parts:
        for name, spread in part.items():
            found[name] = found.get(name, Spread()) + spread
    return found
