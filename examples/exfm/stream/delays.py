"""How long a label takes. The data have no delays of their own, so these are drawn: experiments are semi-synthetic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HOUR = 3600


@dataclass(frozen=True)
class Delays:
    """Seconds from an impression to its label. By default of the shape published for Criteo's conversions: 35 % within
    an hour, 50 % within a day, the rest by `most`.

    quick, day: the two shares. most: the longest, in seconds. lost: share of labels that never come.
    """

    quick: float = 0.35
    day: float = 0.50
    most: int = 48 * HOUR
    lost: float = 0.0

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        """Seconds, 1 at least; -1 for a label that never comes."""
        part, within = rng.random(count), rng.random(count)
        low = np.select([part < self.quick, part < self.day], [0, HOUR], 24 * HOUR)
        high = np.select([part < self.quick, part < self.day], [HOUR, 24 * HOUR], max(self.most, 24 * HOUR + 1))
        seconds = np.minimum(1 + low + within * (high - low), self.most).astype(np.int64)
        return np.where(rng.random(count) < self.lost, -1, seconds)
