"""Which window an impression's label waits for.

Each impression gets one of K attribution windows by a hash of (user, item, time), mapped through a distribution that
one can tune; the default is uniform. The hash is ours (splitmix64): the paper names none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0


@dataclass(frozen=True)
class Windows:
    """Attribution windows in seconds, shortest first; `shares` of the impressions that go to each (uniform by default).

    The last is the longest: its head is the one that serves, the paper's "oracle" head.
    """

    seconds: tuple[float, ...] = (90 * MINUTE, DAY, 7 * DAY)
    shares: tuple[float, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        grow = bool(self.seconds) and self.seconds[0] > 0 and all(np.diff(self.seconds) > 0)
        if not (grow and np.isfinite(self.seconds).all()):
            raise ValueError(f"windows are positive and grow, and close some time, got {self.seconds}")
        spread = all(share >= 0 for share in self.shares) and 0 < sum(self.shares) < float("inf")
        if self.shares and not (spread and len(self.shares) == len(self.seconds)):
            raise ValueError(
                f"expected {len(self.seconds)} finite shares of which none is negative and one positive, "
                f"got {self.shares}"
            )
        if not (isinstance(self.seed, int) and 0 <= self.seed < 2**64):
            raise ValueError(f"a seed is a whole number from 0 to 2^64 - 1, got {self.seed!r}")

    def __len__(self) -> int:
        return len(self.seconds)

    @property
    def longest(self) -> float:
        return self.seconds[-1]

    @property
    def identity(self) -> str:
        """All that the assignment depends on."""
        shares = self.shares or (1.0,) * len(self)
        return f"{_row(self.seconds)} s in shares {_row(shares)} with seed {self.seed}"

    def assign(self, keys: Tensor, times: Tensor) -> Tensor:
        """(N,) the window of each impression; depends on its own key, time and the seed alone."""
        shares = np.array(self.shares or (1.0,) * len(self))
        edges = np.cumsum(shares / shares.sum())[:-1]
        return torch.from_numpy(np.searchsorted(edges, uniform(keys, times, self.seed), side="right"))


def _row(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{float(number)!r}" for number in numbers)


def uniform(keys: Tensor, times: Tensor, seed: int) -> np.ndarray:
    """(N,) numbers in [0, 1), a hash of each row's keys (N, K), whole numbers, and of its time (N,)."""
    if keys.dim() != 2 or times.shape != keys.shape[:1] or keys.dtype != torch.int64:
        raise ValueError(
            f"expected a row of int64 keys and a time an impression, got keys of shape {tuple(keys.shape)} and "
            f"{keys.dtype}, times of shape {tuple(times.shape)}"
        )
    mixed = np.full(len(keys), seed, dtype=np.uint64)
    for column in (*keys.T, times.double().contiguous().view(torch.int64)):
        mixed = _splitmix(mixed ^ _splitmix(column.numpy().astype(np.uint64)))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _splitmix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64; products wrap around."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
