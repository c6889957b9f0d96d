"""How many rows each stratum gives, and which rows that were drawn alone share the variance of their neighbours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]
Floats = NDArray[np.float64]


def largest_remainder(target: Floats, least: Codes, n: int) -> Codes:
    """Whole numbers that sum to n: `target` rounded down (to no fewer than `least`), the rest to the largest rests."""
    whole = np.maximum(np.floor(target + 1e-9).astype(np.int64), least)
    whole[np.argsort(whole - target, kind="stable")[: n - whole.sum()]] += 1
    return whole


def pair_singles(numbers: Codes) -> Codes:
    """Numbers that occur once joined with their neighbour's: the spread of one row is unknown, that of a pair is not.

    (Collapsed strata, Cochran 1977, section 5A.12; for systematic sampling, Wolter 2007, section 8.2. Both overstate
    the variance a little.)
    """
    _, numbers, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    singles = np.flatnonzero(counts[numbers] == 1)
    pairs = np.minimum(np.arange(len(singles)) // 2, max(0, len(singles) // 2 - 1))  # the odd one makes three
    joined = numbers.copy()
    joined[singles] = len(counts) + pairs
    if len(singles) == 1 and len(numbers) > 1:
        joined[singles] = numbers[singles - 1 if singles[0] else singles + 1]
    return np.unique(joined, return_inverse=True)[1]
