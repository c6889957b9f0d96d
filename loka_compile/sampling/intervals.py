"""A figure with its interval, and percentile intervals by bootstrap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Bootstrap:
    """Percentile intervals from `resamples` draws of what is estimated (or of rows, in `assess`)."""

    resamples: int = 200
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 1 or not 0 < self.level < 1:
            raise ValueError(f"a bootstrap has at least 1 resample and a level between 0 and 1; got {self}")


BOOTSTRAP = Bootstrap()


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def interval(values: Array, bootstrap: Bootstrap) -> tuple[Array, Array]:
    """The middle `level` of values[1:], widened to hold values[0].

    Of n draws the quantile p is number p (n + 1), which another draw is below with chance p (Davison and Hinkley 1997,
    section 2.4). Number 1 + p (n - 1), as numpy counts by default, makes 92 % of 95 % where n is 60.
    """
    tail = (1 - bootstrap.level) / 2
    low, high = np.quantile(values[1:], [tail, 1 - tail], axis=0, method="weibull")
    return np.minimum(low, values[0]), np.maximum(high, values[0])


def estimates(figures: Mapping[str, Array], bootstrap: Bootstrap) -> dict[str, Estimate]:
    """Each figure with its interval. An array's first value is the figure, the others are its resamples."""
    return {f: Estimate(float(x[0]), *map(float, interval(x, bootstrap))) for f, x in figures.items()}


def verdict(score: Estimate, threshold: float) -> str:
    """`accept` where the whole interval clears the threshold, `refuse` where none of it does, else `flag`."""
    return "accept" if score.low >= threshold else "refuse" if score.high < threshold else "flag"


def student(df: int) -> float:
    """The 97.5 % quantile of Student's t, from the normal one (Abramowitz & Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
